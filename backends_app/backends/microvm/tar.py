"""Read the headers of a tar, blocks of 512 bytes each, with the few extensions that occur.

The standard library's `tarfile` is not used because it reads headers of any size at once, and some
in quadratic time (CVE-2024-6232). Here everything about an entry except its content is bounded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 512
MAX_EXTENSION_BYTES = 8192  # of a header's value that is used
MAX_RECORDS, MAX_DIGITS, MAX_KEY_BYTES = 100, 10, 512
MAX_EXTENSIONS = 4  # in a row, before the entry that they belong to
READ_BYTES = 64 * 1024
FOLDER = b"5"
LINK = b"2"
LONG_NAME, LONG_TARGET, RECORDS, GLOBAL_RECORDS = b"L", b"K", b"x", b"g"
USED_KEYS = frozenset({"path", "size", "linkpath"})
# pax records that make no difference here. Any other record is rejected.
IGNORED_KEYS = frozenset({"comment", "mtime", "atime", "ctime", "uid", "gid", "uname", "gname"})
IGNORED_PREFIXES = ("SCHILY.", "LIBARCHIVE.")


class InvalidTar(ValueError):
    """The data is not a tar, or uses an unsupported feature; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry as described by its headers. `kind` is its type, `target` the target of a link."""

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
    """Yield each entry with a function that reads up to a number of bytes of its content.

    `read` returns as many bytes as requested, unless the stream ends. Raise `InvalidTar`, also for
    data other than zeros after the end of the archive.
    """
    name: str | None = None
    target: str | None = None
    size: int | None = None
    extensions = 0
    while any(block := _read_exactly(read, BLOCK)):
        kind, length = _kind(block), _number(block[124:136])
        if kind in (LONG_NAME, LONG_TARGET, RECORDS, GLOBAL_RECORDS):
            extensions += 1
            is_long = kind in (LONG_NAME, LONG_TARGET)
            if extensions > MAX_EXTENSIONS or (is_long and length > MAX_EXTENSION_BYTES):
                raise InvalidTar("headers are too large")
            if is_long:
                text = _text(_read_exactly(read, length + -length % BLOCK)[:length].rstrip(b"\0"))
                name, target = (text, target) if kind == LONG_NAME else (name, text)
                continue
            records = _records(read, length)
            if kind == GLOBAL_RECORDS and records:
                raise InvalidTar("a global header sets a path or a size")
            name = records.get("path", name)
            target = records.get("linkpath", target)
            size = _decimal(records["size"]) if "size" in records else size
            continue
        content = _Content(read, length if size is None else size)
        mode = _number(block[100:108])
        if target is not None and kind != LINK:
            raise InvalidTar("an entry that is not a link has a link target")
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
        raise InvalidTar("a header at the end belongs to no entry")
    while rest := read(READ_BYTES):
        if rest.strip(b"\0"):
            raise InvalidTar("data after the end of the archive")


class _Content:
    """Reader of an entry's content, up to the next header."""

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
        raise InvalidTar("unexpected end of data")
    return data


def _kind(block: bytes) -> bytes:
    """Return the type of the entry, after verifying the header's checksum."""
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if checksum != _number(block[148:156]):
        raise InvalidTar("a header is damaged")
    return block[156:157]


def _number(field: bytes) -> int:
    """Return a number of octal digits with trailing spaces or NULs; reject GNU's binary form."""
    digits = field.rstrip(b" \0").lstrip(b" ")
    if digits and not (digits.isdigit() and digits.translate(None, b"89") == digits):
        raise InvalidTar("contains an invalid numeric field")
    return int(digits or b"0", 8)


def _decimal(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise InvalidTar("contains an invalid size")
    return int(text)


def _name(block: bytes) -> str:
    """Return the name, with POSIX's prefix field; GNU uses that field differently."""
    name = _text(block[:100].partition(b"\0")[0])
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return f"{_text(prefix)}/{name}" if prefix else name


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidTar("a path is not UTF-8") from None


def _records(read: Callable[[int], bytes], length: int) -> dict[str, str]:
    """Return the used records of a header: lines of `length key=value`.

    See `pax Extended Header` in POSIX. Ignored values may be long, like macOS's extended
    attributes: they are skipped while they are read and never held in memory.
    """
    found: dict[str, str] = {}
    body = _Content(read, length)
    for _ in range(MAX_RECORDS):
        if not body.left:
            body.skip()
            return found
        digits = _until(body, b" ", MAX_DIGITS)
        if not digits.isdigit():
            raise InvalidTar("a header is damaged")
        left = int(digits) - len(digits) - 1
        if not 3 <= left <= body.left:
            raise InvalidTar("a header is damaged")
        key = _until(body, b"=", min(left, MAX_KEY_BYTES))
        left -= len(key) + 1
        name = _text(key)
        is_ignored = name in IGNORED_KEYS or name.startswith(IGNORED_PREFIXES)
        if name not in USED_KEYS and not is_ignored:
            raise InvalidTar(f"the header record {name[:40]!r} is not supported")
        if name in USED_KEYS and left > MAX_EXTENSION_BYTES:
            raise InvalidTar("headers are too large")
        last = b""
        while left:
            part = body.read(min(left, READ_BYTES))
            left -= len(part)
            last = part
        if not last.endswith(b"\n"):
            raise InvalidTar("a header is damaged")
        if name in USED_KEYS:
            found[name] = _text(last[:-1])
    raise InvalidTar("headers are too large")


def _until(body: "_Content", end: bytes, max_bytes: int) -> bytes:
    """Return the bytes before `end`, which must follow within `max_bytes`."""
    found = bytearray()
    while (one := body.read(1)) != end:
        found += one
        if not one or len(found) >= max_bytes:
            raise InvalidTar("a header is damaged")
    return bytes(found)
