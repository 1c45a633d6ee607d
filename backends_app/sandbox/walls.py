"""Sandbox layers around a process: detected once, then applied between fork and exec."""

import ctypes
import fcntl
import os
import resource
import signal
from collections.abc import Callable, Sequence
from functools import partial

from . import landlock, root, seccomp
from .libc import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, PR_SET_SECCOMP, check, libc, prctl

# systemd keeps these ids free (UIDS-GIDS in its documentation). The process id is added, so that no
# two workloads running at the same time share a user, within this namespace of process ids.
FIRST_UID = 0x70000000
MAX_PIDS = 1 << 22
CAP_SETGID, CAP_SETUID = 6, 7
SECCOMP_MODE_FILTER = 2

NICENESS = 5  # the server and the launcher take precedence
MAX_FILE_BYTES = 4096  # Deno does not start with less
FIRST_FILE = 3  # the first descriptor of a command's files
FIRST_HIGH = 16  # descriptors from here on do not collide with those
MAX_DESCRIPTORS = 256
STACK_BYTES = 8 << 20  # of the main thread, the usual size; `root.stack_maps` relies on it
MAX_THREADS = 128 + (os.cpu_count() or 1)

MISSING = {
    "files": "neither mount namespaces nor Landlock are available",
    "network": "neither network namespaces nor seccomp are available",
    "syscalls": "seccomp is not available",
    "processes": "neither seccomp nor a separate user to count processes by is available",
    "user": "the server is root and cannot change to another user",
}


class Sandbox:
    """The sandbox layers that this host can put around `program`.

    The constructor moves the calling process into new namespaces, so only a process dedicated to
    this may create an instance.

    `active` maps each active layer to its basis, `missing` each missing one to the reason. The
    program may read `readable_files` besides its libraries, and use `devices`. It may open
    `mapped_files` for writing, which a private mapping can require, but cannot write to them or to
    any other file.
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
        layers: dict[str, list[str]] = {layer: [] for layer in MISSING}
        self._rules: int | None = None
        self._make_rules: Callable[[], int] | None = None
        self._own_user = os.geteuid() == 0 and _can_change_user()
        self._own_user_namespace = False
        if landlock.abi():
            make_rules = partial(
                landlock.ruleset, (program, loader), readable, mapped_files, devices
            )
            self._rules = _move_high(make_rules())
            self._make_rules = make_rules  # per process, unless a root provides common maps
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
        self.active = {layer: ", ".join(basis) for layer, basis in layers.items() if basis}
        self.missing = {layer: MISSING[layer] for layer, basis in layers.items() if not basis}

    def enter(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        streams: Sequence[int],
        files: Sequence[str] = (),
    ) -> None:
        """Become the sandboxed program, in a forked child; never return except by an exception.

        `files` are open for reading from descriptor 3 on.
        """
        parent, own_pid = os.getppid(), os.getpid()
        os.setsid()
        for number, stream in enumerate(streams):  # all other descriptors are close-on-exec
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
        elif self._own_user_namespace:  # counts its processes separately from the server's
            check("unshare", libc.unshare(root.CLONE_NEWUSER))
        limits = [
            (resource.RLIMIT_CORE, 1),  # 0 would not stop a core dump to a pipe, see core(5)
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
            landlock.allow_reading(rules, root.MAPS)  # of this process only
            landlock.restrict(rules)
        elif self._rules is not None:
            landlock.restrict(self._rules)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it
        if os.getppid() != parent:
            os._exit(0)  # the launcher died before the signal was set
        if self._filters:
            filter = seccomp.program(
                own_pid, protects_files=self._maps_files, devices=self._has_devices
            )
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter))
        os.execve(self._executable, [self._name, *arguments], environment)  # noqa: S606 - the point

    def limit(self, pid: int, limit: int, most: int) -> None:
        """Set a limit of setrlimit(2) on a running process; ignore one that has ended.

        The kernel requires the caller to have the same real user.
        """
        original = os.getuid(), os.getgid()
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
                os.setresuid(original[0], -1, -1)
                os.setresgid(original[1], -1, -1)


def _move_high(descriptor: int) -> int:
    """Move a descriptor to a number that is not reused later; it is close-on-exec."""
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
    """Return whether the kernel has seccomp filters: then a filter at address 0 fails as EFAULT."""
    result = libc.prctl(
        PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), *[ctypes.c_ulong(0)] * 3
    )
    return bool(result != 0 and ctypes.get_errno() == 14)
