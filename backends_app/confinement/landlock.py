"""Landlock: which files a process may open at all, by the kernel's word (landlock(7))."""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from .libc import libc, os_error

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
VERSION_FLAG = 1
PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
IOCTL_DEV = 1 << 15
FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}  # all rights, from which ABI on
NETWORK_RIGHTS = {1: 0, 4: 0x3}  # bind and connect TCP
SCOPES = {1: 0, 6: 0x3}  # abstract sockets and signals stay inside


def abi() -> int:
    """The version that the running kernel has, 0 when it has none."""
    return max(0, int(libc.syscall(CREATE_RULESET, None, 0, VERSION_FLAG)))


def ruleset(
    executable: Iterable[str],
    readable: Iterable[str],
    mapped_files: Iterable[str] = (),
    devices: Iterable[str] = (),
) -> int:
    """A descriptor for `restrict`: these files may be used, and nothing else in any way.

    A folder stands for everything below it. `mapped` may be opened for writing, but not truncated,
    from version 3 on.
    """
    version = abi()
    handled = [_rights_for(version, table) for table in (FILE_RIGHTS, NETWORK_RIGHTS, SCOPES)]
    attributes = struct.pack("=QQQ", *handled)
    rules: int = libc.syscall(CREATE_RULESET, attributes, len(attributes), 0)
    if rules < 0:
        raise os_error("landlock_create_ruleset")
    for paths, rights in (
        (executable, EXECUTE | READ_FILE),
        (readable, READ_FILE | READ_DIR),
        (mapped_files, READ_FILE | WRITE_FILE),
        (devices, READ_FILE | WRITE_FILE | IOCTL_DEV),
    ):
        for path in paths:
            _allow(rules, path, rights & handled[0])
    return rules


def allow_reading(rules: int, path: str) -> None:
    """Add a file to those that may be read."""
    _allow(rules, path, READ_FILE)


def restrict(rules: int) -> None:
    """From here on, for this process and all that come of it. Needs `no_new_privs`."""
    if libc.syscall(RESTRICT_SELF, rules, 0) != 0:
        raise os_error("landlock_restrict_self")


def _allow(rules: int, path: str, rights: int) -> None:
    below = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(below).st_mode):
            rights &= ~READ_DIR
        rule = struct.pack("=Qi", rights, below)
        if libc.syscall(ADD_RULE, rules, PATH_BENEATH, rule, ctypes.c_uint(0)) != 0:
            raise os_error("landlock_add_rule")
    finally:
        os.close(below)


def _rights_for(version: int, table: dict[int, int]) -> int:
    return next(rights for since, rights in sorted(table.items(), reverse=True) if version >= since)
