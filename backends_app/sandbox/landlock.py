"""Landlock rules: the kernel limits the files that a process may open (landlock(7))."""

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
FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}  # all rights, by first ABI version
NETWORK_RIGHTS = {1: 0, 4: 0x3}  # bind and connect TCP
SCOPES = {1: 0, 6: 0x3}  # abstract sockets and signals are confined to the sandbox


def abi() -> int:
    """Return the running kernel's Landlock version, 0 if it has none."""
    return max(0, int(libc.syscall(CREATE_RULESET, None, 0, VERSION_FLAG)))


def ruleset(
    executable: Iterable[str],
    readable: Iterable[str],
    mapped_files: Iterable[str] = (),
    devices: Iterable[str] = (),
) -> int:
    """Return a descriptor for `restrict` that allows these files and nothing else.

    A folder includes everything below it. `mapped_files` may be opened for writing, but, from
    version 3 on, not truncated.
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
    """Allow one more file to be read."""
    _allow(rules, path, READ_FILE)


def restrict(rules: int) -> None:
    """Apply the rules to this process and its descendants for good. Needs `no_new_privs`."""
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
