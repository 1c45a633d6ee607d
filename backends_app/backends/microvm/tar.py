"""Reads the headers of a tar: each a block of 512 bytes, and with the few extensions that are met.

Not by `tarfile`, which reads headers of any size whole, and some of them in a time that grows with
the square of it (CVE-2024-6232). Here everything about an entry that is not its content is bounded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 512
MAX_EXTENSION_BYTES = 8192  # of what is kept of a header
MAX_RECORDS, MAX_DIGITS, MAX_KEY_BYTES = 100, 10, 512
MAX_EXTENSIONS = 4  # in a row, before the entry that they belong to
READ_BYTES = 64 * 1024
FOLDER = b"5"
LINK = b"2"
LONG_NAME, LONG_TARGET, RECORDS, GLOBAL_RECORDS = b"L", b"K", b"x", b"g"
USED_KEYS = frozenset({"path", "size", "linkpath"})
# What pax may say of an entry that makes no difference here; what is not listed is refused.
IGNORED_KEYS = frozenset({"comment", "mtime", "atime", "ctime", "uid", "gid", "uname", "gname"})
IGNORED_PREFIXES = ("SCHILY.", "LIBARCHIVE.")


class InvalidTar(ValueError):
    """It is no tar, or uses what is not taken; the text says which."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file, a folder or a link, as its headers have it; `kind` is any other's type.

    `target` is what a link leads to.
    """

    name: str
    target: str
    size: int
    mode: int
    kind: bytes

    @property
    def is_folder(self) -> bool:
        return self.kind == FOLDER

    @property
    def is_link(self) -> bool:
        return self.kind == LINK

    @property
    def is_file(self) -> bool:
        return self.kind in (b"0", b"\0")


def entries(read: Callable[[int], bytes]) -> Iterator[tuple[Entry, Callable[[int], bytes]]]:
    """Each entry with a function that reads its content, as far as that is wanted.

    `read` gives as many bytes as it is asked for, unless the stream ends. Raises `Malformed`, also
    for what comes behind the end of the archive and is not zeros.
    """
    name: str | None = None
    target: str | None = None
    size: int | None = None
    extensions = 0
    while any(block := _read_exactly(read, BLOCK)):
        kind, length = _kind(block), _number(block[124:136])
        if kind in (LONG_NAME, LONG_TARGET, RECORDS, GLOBAL_RECORDS):
            extensions += 1
            long = kind in (LONG_NAME, LONG_TARGET)
            if extensions > MAX_EXTENSIONS or (long and length > MAX_EXTENSION_BYTES):
                raise InvalidTar("has headers that are too large")
            if long:
                text = _text(_read_exactly(read, length + -length % BLOCK)[:length].rstrip(b"\0"))
                name, target = (text, target) if kind == LONG_NAME else (name, text)
                continue
            records = _records(read, length)
            if kind == GLOBAL_RECORDS and records:
                raise InvalidTar("has a path or a size for all of its entries")
            name = records.get("path", name)
            target = records.get("linkpath", target)
            size = _decimal(records["size"]) if "size" in records else size
            continue
        content = _Content(read, length if size is None else size)
        mode = _number(block[100:108])
        if target is not None and kind != LINK:
            raise InvalidTar("has a link's target for what is no link")
        entry = Entry(
            name=name or _name(block),
            target=target or _text(block[157:257].partition(b"\0")[0]) if kind == LINK else "",
            size=content.size,
            mode=mode,
            kind=kind,
        )
        yield entry, content.read
        content.skip()
        name, target, size, extensions = None, None, None, 0
    if extensions:
        raise InvalidTar("ends with a header that belongs to nothing")
    while rest := read(READ_BYTES):
        if rest.strip(b"\0"):
            raise InvalidTar("has something behind its end")


class _Content:
    """What is left of an entry's content, up to the next header."""

    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        self.size = self.left = size
        self._stream = read

    def read(self, size: int) -> bytes:
        data = _read_exactly(self._stream, min(size, self.left))
        self.left -= len(data)
        return data

    def skip(self) -> None:
        while self.left:
            self.read(READ_BYTES)
        _read_exactly(self._stream, -self.size % BLOCK)


def _read_exactly(read: Callable[[int], bytes], length: int) -> bytes:
    data = read(length) if length else b""
    if len(data) != length:
        raise InvalidTar("ends too early")
    return data


def _kind(block: bytes) -> bytes:
    """The type of the entry, of a header whose sum is right."""
    counted = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if counted != _number(block[148:156]):
        raise InvalidTar("has a header that is damaged")
    return block[156:157]


def _number(field: bytes) -> int:
    """Octal digits, then a space or NUL. Numbers in GNU's form for larger ones are none of ours."""
    digits = field.rstrip(b" \0").lstrip(b" ")
    if digits and not (digits.isdigit() and digits.translate(None, b"89") == digits):
        raise InvalidTar("has a number that is none")
    return int(digits or b"0", 8)


def _decimal(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise InvalidTar("has a size that is none")
    return int(text)


def _name(block: bytes) -> str:
    """With the prefix that POSIX puts elsewhere; GNU has other things there."""
    name = _text(block[:100].partition(b"\0")[0])
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return f"{_text(prefix)}/{name}" if prefix else name


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidTar("has a path that is not UTF-8") from None


def _records(read: Callable[[int], bytes], length: int) -> dict[str, str]:
    """Read lines of `length key=value`; see `pax Extended Header` in POSIX.

    What makes no difference may be long, as what macOS keeps beside a file is: it is passed over
    while it is read, and never held.
    """
    found: dict[str, str] = {}
    body = _Content(read, length)
    for _ in range(MAX_RECORDS):
        if not body.left:
            body.skip()
            return found
        digits = _until(body, b" ", MAX_DIGITS)
        if not digits.isdigit():
            raise InvalidTar("has a header that is damaged")
        left = int(digits) - len(digits) - 1
        if not 3 <= left <= body.left:
            raise InvalidTar("has a header that is damaged")
        key = _until(body, b"=", min(left, MAX_KEY_BYTES))
        left -= len(key) + 1
        name = _text(key)
        harmless = name in IGNORED_KEYS or name.startswith(IGNORED_PREFIXES)
        if name not in USED_KEYS and not harmless:
            raise InvalidTar(f"has a header for {name[:40]!r}, which is not taken")
        if name in USED_KEYS and left > MAX_EXTENSION_BYTES:
            raise InvalidTar("has headers that are too large")
        last = b""
        while left:
            part = body.read(min(left, READ_BYTES))
            left -= len(part)
            last = part
        if not last.endswith(b"\n"):
            raise InvalidTar("has a header that is damaged")
        if name in USED_KEYS:
            found[name] = _text(last[:-1])
    raise InvalidTar("has headers that are too large")


def _until(body: "_Content", end: bytes, most: int) -> bytes:
    """Read up to `end`, which has to come before more than so many bytes."""
    found = bytearray()
    while (one := body.read(1)) != end:
        found += one
        if not one or len(found) >= most:
            raise InvalidTar("has a header that is damaged")
    return bytes(found)
