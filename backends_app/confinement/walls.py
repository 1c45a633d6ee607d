"""The walls around a process: found out once, then put up between fork and exec."""

import ctypes
import fcntl
import os
import resource
import signal
from collections.abc import Callable, Sequence
from functools import partial

from . import landlock, root, seccomp
from .libc import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, PR_SET_SECCOMP, check, libc, prctl

# systemd keeps these free (UIDS-GIDS in its documentation); a process id is added, so that no two
# workloads that live at the same time share a user, as far as process ids are seen from here.
FIRST_UID = 0x70000000
MAX_PIDS = 1 << 22
CAP_SETGID, CAP_SETUID = 6, 7
SECCOMP_MODE_FILTER = 2

NICENESS = 5  # the server, and the launcher that watches, come first
MAX_FILE_BYTES = 4096  # with less Deno does not start
FIRST_FILE = 3  # the first descriptor of a command's files
FIRST_HIGH = 16  # descriptors from here on do not collide with those
MAX_DESCRIPTORS = 256
STACK_BYTES = 8 << 20  # of the main thread, as everywhere; `root.stack_maps` counts on it
MAX_THREADS = 128 + (os.cpu_count() or 1)

MISSING = {
    "files": "neither mount namespaces nor Landlock are to be had",
    "network": "neither network namespaces nor seccomp are to be had",
    "syscalls": "seccomp is not to be had",
    "processes": "neither seccomp nor a user of its own, to count them by, is to be had",
    "user": "the server is root and may not change to another user",
}


class Sandbox:
    """What this host can put around `program`. Making one moves the calling process into its own
    namespaces, so only a process that has nothing else to do makes one.

    `in_force` says for each wall by what it stands; `missing` why one does not. `exposed` are files
    that the program may read besides its libraries, and `devices` those that it may drive. `mapped`
    are files that it opens for writing, as what maps a file privately may have to: it cannot write
    to them all the same, nor to any other.
    """

    def __init__(
        self,
        program: str,
        name: str,
        readable_files: Sequence[str],
        mapped_files: Sequence[str] = (),
        devices: Sequence[str] = (),
    ) -> None:
        self._executable = _move_high(os.open(program, os.O_PATH))
        self._name = name
        loader, libraries = root.find_libraries(program)
        readable = [*libraries, *readable_files]
        self._maps_files, self._has_devices = bool(mapped_files), bool(devices)
        self._groups = sorted({os.stat(device).st_gid for device in devices} - {0})
        layers: dict[str, list[str]] = {wall: [] for wall in MISSING}
        self._rules: int | None = None
        self._make_rules: Callable[[], int] | None = None
        self._own_user = os.geteuid() == 0 and _can_change_user()
        self._own_user_namespace = False
        if landlock.abi():
            make_rules = partial(
                landlock.ruleset, (program, loader), readable, mapped_files, devices
            )
            self._rules = _move_high(make_rules())
            self._make_rules = make_rules  # until there is a root with maps that serve all
            layers["files"].append(f"Landlock {landlock.abi()}")
        try:
            root.unshare(users=not self._own_user)
        except OSError:
            pass
        else:
            layers["network"].append("network namespace")
            self._own_user_namespace = not self._own_user
            try:
                root.pivot_into(program, f"/{name}", [loader, *readable], [*mapped_files, *devices])
            except OSError:
                pass
            else:
                layers["files"].insert(0, "a root of its own")
                self._make_rules = None
                if self._rules is not None:
                    landlock.allow_reading(self._rules, root.MAPS)
        self._filters = seccomp.supported() and _has_seccomp()
        if self._filters:
            layers["syscalls"].append("seccomp")
            layers["network"].append("seccomp")
            layers["processes"].append("seccomp")
        if self._own_user or self._own_user_namespace:
            layers["processes"].append("RLIMIT_NPROC")
        if self._own_user:
            layers["user"].append("an unprivileged user of its own")
        elif os.geteuid() != 0:
            layers["user"].append("the server's user, who is not root")
        self.active = {wall: ", ".join(by) for wall, by in layers.items() if by}
        self.missing = {wall: MISSING[wall] for wall, by in layers.items() if not by}

    def enter(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        streams: Sequence[int],
        files: Sequence[str] = (),
    ) -> None:
        """In a forked child: become the program behind the walls, with `files` open for reading
        from descriptor 3 on. Returns only by an exception.
        """
        parent, own_pid = os.getppid(), os.getpid()
        os.setsid()
        for number, stream in enumerate(streams):  # every other descriptor closes with exec
            os.dup2(stream, number)
        for number, file in enumerate([_move_high(os.open(file, os.O_RDONLY)) for file in files]):
            os.dup2(file, FIRST_FILE + number)
        for handled in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores both
            signal.signal(handled, signal.SIG_DFL)
        os.umask(0o077)
        os.nice(NICENESS)
        if self._own_user:
            user = FIRST_UID + own_pid % MAX_PIDS
            os.setgroups(self._groups)
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        elif self._own_user_namespace:  # where its processes are counted apart from the server's
            check("unshare", libc.unshare(root.CLONE_NEWUSER))
        limits = [
            (resource.RLIMIT_CORE, 1),  # 0 would not keep the kernel from a helper, see core(5)
            (resource.RLIMIT_FSIZE, 0 if self._maps_files else MAX_FILE_BYTES),
            (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
            (resource.RLIMIT_STACK, STACK_BYTES),
            (resource.RLIMIT_MEMLOCK, 0),
            (resource.RLIMIT_MSGQUEUE, 0),
        ]
        if self._own_user or self._own_user_namespace:
            limits.append((resource.RLIMIT_NPROC, MAX_THREADS))
        for limit, most in limits:
            _, hard = resource.getrlimit(limit)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(limit, (most, most))
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if self._make_rules is not None:
            rules = self._make_rules()
            landlock.allow_reading(rules, root.MAPS)  # of this very process
            landlock.restrict(rules)
        elif self._rules is not None:
            landlock.restrict(self._rules)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user would have cleared it
        if os.getppid() != parent:
            os._exit(0)  # the launcher died before it could take its child along
        if self._filters:
            filter = seccomp.program(
                own_pid, protects_files=self._maps_files, devices=self._has_devices
            )
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter))
        os.execve(self._executable, [self._name, *arguments], environment)  # noqa: S606 - the point

    def limit(self, pid: int, limit: int, most: int) -> None:
        """Set a limit of setrlimit(2) for a process that runs already; one that has ended needs
        none. The kernel wants the caller to be of the same real user.
        """
        mine = os.getuid(), os.getgid()
        user = FIRST_UID + pid % MAX_PIDS
        try:
            if self._own_user:
                os.setresgid(user, -1, -1)
                os.setresuid(user, -1, -1)
            resource.prlimit(pid, limit, (most, most))
        except ProcessLookupError:
            pass
        finally:
            if self._own_user:
                os.setresuid(mine[0], -1, -1)
                os.setresgid(mine[1], -1, -1)


def _move_high(descriptor: int) -> int:
    """The same file by a number that no other is put in the place of; it closes with exec."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_HIGH)
    finally:
        os.close(descriptor)


def _can_change_user() -> bool:
    with open("/proc/self/uid_map") as lines:
        spans = [[int(number) for number in line.split()] for line in lines]
    is_mapped = any(
        first <= FIRST_UID and first + count >= FIRST_UID + MAX_PIDS for first, _, count in spans
    )
    with open("/proc/self/status") as lines:
        effective = next(int(line.split()[1], 16) for line in lines if line[:7] == "CapEff:")
    return is_mapped and bool(effective >> CAP_SETUID & 1) and bool(effective >> CAP_SETGID & 1)


def _has_seccomp() -> bool:
    """A filter at the address 0 is refused for its address where filters are known at all."""
    result = libc.prctl(
        PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), *[ctypes.c_ulong(0)] * 3
    )
    return bool(result != 0 and ctypes.get_errno() == 14)
