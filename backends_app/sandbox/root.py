"""A private root directory: an empty file system with only the files that a program needs."""

import os
import re
import struct
import subprocess
from collections.abc import Iterable

from .libc import check, libc

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MS_NOATIME, MS_NODIRATIME, MS_RELATIME = 1024, 2048, 1 << 21
ST_RELATIME = 4096  # the one flag that statvfs(3) numbers differently
MNT_DETACH = 2

# Any folder would do. This one exists on every host and holds nothing that is needed.
MOUNT_POINT = "/proc"
HOSTNAME = b"vulcan"
PT_INTERP = 3
MAPS = "/proc/self/maps"
STACK_SPREAD = 5 << 32  # below the end of all addresses; Linux places main stacks in 16 GB of it
STACK_STEP = 1 << 22  # half of the smallest stack of a sandboxed process


def unshare(*, users: bool) -> None:
    """Enter new network, mount, IPC and UTS namespaces; with `users`, needed without root, a new
    user namespace, too, in which this process keeps its user and group.
    """
    user, group = os.geteuid(), os.getegid()
    check("unshare", libc.unshare(NAMESPACES | (CLONE_NEWUSER if users else 0)))
    if users:
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    check("sethostname", libc.sethostname(HOSTNAME, len(HOSTNAME)))


def pivot_into(program: str, inside: str, files: Iterable[str], writable: Iterable[str]) -> None:
    """Build the root and pivot into it: `program` at the path `inside`, the files at their paths.

    Only `writable` files can be opened for writing there. Programs read /proc/self/exe for their
    own path, and the C library reads /proc/self/maps for the bounds of the main stack, so those two
    exist; the maps are the same for all processes, see `stack_maps`.
    """
    with open(MAPS) as lines:
        maps = stack_maps(_stack_end(lines))
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", MOUNT_POINT, "tmpfs", MS_NOSUID | MS_NODEV, b"mode=755,size=2m")
    for source, target in ((program, inside), *((path, path) for path in files)):
        _bind_mount(source, MOUNT_POINT + target, MS_RDONLY)
    for path in writable:
        _bind_mount(path, MOUNT_POINT + path, 0)
    os.makedirs(f"{MOUNT_POINT}/proc/self", exist_ok=True)
    os.symlink(inside, f"{MOUNT_POINT}/proc/self/exe")
    with open(MOUNT_POINT + MAPS, "x") as file:
        file.write(maps)
    _mount(None, MOUNT_POINT, None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(MOUNT_POINT)
    check("pivot_root", libc.pivot_root(b".", b"."))
    check("umount2", libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


def stack_maps(stack_end: int) -> str:
    """Return lines like those of /proc/PID/maps, one of which holds the end of any main stack.

    The kernel places each stack at random, but one file serves all processes. The C library knows
    where its stack ends, finds the line around that address, and computes the stack's size as the
    limit (RLIMIT_STACK) less the rest of that line. So lines of 4 MB yield a size that is correct
    or too small by less than 4 MB. The highest come first, because the library takes an earlier
    line that ends below the stack for its lower neighbour.
    """
    top = 1 << stack_end.bit_length()  # end of the address space of programs on this host
    return "".join(
        f"{end - STACK_STEP:x}-{end:x} rw-p 00000000 00:00 0\n"
        for end in range(top, top - STACK_SPREAD, -STACK_STEP)
    )


def _stack_end(maps: Iterable[str]) -> int:
    """Return the end of the calling process's own main stack."""
    return next(
        int(line.partition("-")[2].split()[0], 16) for line in maps if line.endswith("[stack]\n")
    )


def find_libraries(program: str) -> tuple[str, list[str]]:
    """Return the loader that an ELF program names and the shared libraries that the loader finds.

    Raise `ValueError` for a file that is not such a program.
    """
    try:
        loader = _loader(program)
        listed = subprocess.run(  # noqa: S603 - the system's own loader; it does not run the program
            [loader, "--list", program],
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (struct.error, subprocess.TimeoutExpired) as error:
        raise ValueError("it cannot be loaded") from error
    found = re.findall(rb"=> (/\S+) \(", listed.stdout)
    return loader, sorted({os.fsdecode(path) for path in found} - {loader})


def _loader(program: str) -> str:
    """Return the loader of a 64-bit program, from PT_INTERP of elf(5)."""
    with open(program, "rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02" or len(head) < 64:
            raise ValueError("it is not a 64-bit ELF program")
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(table)
        for entry in struct.iter_unpack("<IIQQQQQQ", file.read(size * count)):
            kind, _, offset, _, _, length, _, _ = entry
            if kind == PT_INTERP:
                file.seek(offset)
                return os.fsdecode(file.read(length).rstrip(b"\0"))
    raise ValueError("it is linked statically")


def _bind_mount(source: str, target: str, forbidden: int) -> None:
    """Bind-mount a file or folder, keeping the restrictions of the host's mount."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        with open(target, "x"):
            pass
    _mount(source, target, None, MS_BIND)
    flags = os.statvfs(target).f_flag
    inherited = flags & (MS_RDONLY | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)
    inherited |= MS_RELATIME if flags & ST_RELATIME else 0
    _mount(None, target, None, MS_REMOUNT | MS_BIND | MS_NOSUID | forbidden | inherited)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: bytes | None = None
) -> None:
    names = [None if name is None else os.fsencode(name) for name in (source, target, kind)]
    check("mount", libc.mount(*names, flags, data))
