"""Resolve the user of a program in a container from its image's files; never root."""

import re
from collections.abc import Callable

NOBODY_ID = 65534
NOBODY = f"{NOBODY_ID}:{NOBODY_ID}"
PASSWD, GROUP = "/etc/passwd", "/etc/group"


def resolve_user(configured: str, read: Callable[[str], str]) -> str:
    """Return the numeric user and group of an image's `USER`; nobody's if unknown or root.

    `read` returns the text of a file of the image, empty if there is no such file.
    """
    user, _, group = configured.partition(":")
    if _is_id(user) and _is_id(group):
        return f"{int(user)}:{int(group)}"
    found = _line(read(PASSWD), user, 4) if user else None
    uid = _id(user if _is_number(user) else found[2] if found else "")
    if uid is None:
        return NOBODY
    if not group:
        gid = _id(found[3]) if found else None
    elif _is_number(group):
        gid = _id(group)
    else:
        line = _line(read(GROUP), group, 3)
        gid = _id(line[2]) if line else None
    return f"{uid}:{NOBODY_ID if gid is None else gid}"


def _line(text: str, wanted: str, fields: int) -> list[str] | None:
    """Return the fields of the first line of passwd(5) or group(5) for a name or a number."""
    column = 2 if _is_number(wanted) else 0
    for line in text.splitlines():
        found = line.split(":")
        if len(found) >= fields and found[column] == wanted:
            return found
    return None


def _id(text: str) -> int | None:
    return int(text) if _is_id(text) else None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+", text) is not None


def _is_id(text: str) -> bool:
    """Return whether it is a user or group id that engines accept, other than root's."""
    return re.fullmatch(r"[0-9]{1,10}", text) is not None and 0 < int(text) < 2**31
