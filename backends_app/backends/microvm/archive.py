"""Judges an archive before a machine sees it: a tar.gz of plain files and folders, within bounds.

Nothing is written anywhere, and no more is unpacked than the bounds allow: the first entry that
breaks a rule ends the reading.
"""

import gzip
import io
import json
import tarfile
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...exceptions import InvalidRequest, quote

FIELD = "code_archive"
MOST_ENTRIES = 5000
MOST_UNPACKED_BYTES = 64 * 1024 * 1024
MOST_PATH_BYTES, MOST_NAME_BYTES, MOST_DEPTH = 512, 255, 32
MOST_HEADERS_BYTES = 4 * 1024 * 1024  # of everything that is no file's content
MOST_MANIFEST_BYTES = 256 * 1024
READ_BYTES = 64 * 1024
SET_ID = 0o6000


@dataclass
class Archive:
    """What was found: the paths of its files, and the contents of the one that was asked for."""

    files: set[str] = field(default_factory=set)
    manifest: Any = None

    def entry(self, entries: Sequence[str]) -> str:
        """The file to run: the manifest's `main`, or the first of `entries` that is there."""
        main = self.manifest.get("main") if isinstance(self.manifest, dict) else None
        wanted = [main.removeprefix("./")] if isinstance(main, str) else []
        for name in (*wanted, *entries):
            if name in self.files:
                return name
        expected = " or ".join(entries)
        if wanted:
            raise InvalidRequest(FIELD, f"Its main, {quote(main)}, is not among its files.")
        raise InvalidRequest(FIELD, f"Has no {expected} at its top; add it, or give a command.")


class _Bounded(io.RawIOBase):
    """What is unpacked, as far as the bounds go; `ends` is where its last byte but zeros was."""

    def __init__(self, packed: bytes) -> None:
        self.ends = self._read = 0
        self._unpacked = gzip.GzipFile(fileobj=io.BytesIO(packed))
        self._left = MOST_UNPACKED_BYTES + MOST_HEADERS_BYTES

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._unpacked.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise InvalidRequest(FIELD, f"Unpacks to more than {MOST_UNPACKED_BYTES:,} bytes.")
        if content := len(data.rstrip(b"\0")):
            self.ends = self._read + content
        self._read += len(data)
        return data


def judged(packed: bytes, manifest: str | None = None) -> Archive:
    """Read all of it; raises `InvalidRequest` for what breaks a rule.

    `manifest` is the file whose content is wanted, as JSON.
    """
    found = Archive()
    stream = _Bounded(packed)
    taken: dict[str, str] = {}  # paths as a careless file system would compare them, and their kind
    unpacked = entries = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                entries += 1
                if entries > MOST_ENTRIES:
                    raise InvalidRequest(FIELD, f"Has more than {MOST_ENTRIES:,} entries.")
                _allowed(member)
                path = _path(member.name)
                _claim(taken, path, member.isdir())
                if member.isdir():
                    continue
                unpacked += member.size
                if unpacked > MOST_UNPACKED_BYTES:
                    raise InvalidRequest(
                        FIELD, f"Unpacks to more than {MOST_UNPACKED_BYTES:,} bytes."
                    )
                found.files.add(path)
                if path == manifest:
                    found.manifest = _json(tar, member)
            while stream.read(READ_BYTES):  # up to the checksum behind the last byte
                pass
            if (
                stream.ends > tar.offset
            ):  # it stops at what it does not understand, and says nothing
                raise InvalidRequest(FIELD, "Is no complete tar.gz.")
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError) as error:
        raise InvalidRequest(FIELD, "Is no complete tar.gz.") from error
    if not found.files:
        raise InvalidRequest(FIELD, "Has no file in it.")
    return found


def _allowed(member: tarfile.TarInfo) -> None:
    name = quote(member.name)
    if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
        raise InvalidRequest(
            FIELD, f"{name} is neither a file nor a folder: links and devices are not taken."
        )
    if member.mode & SET_ID:
        raise InvalidRequest(FIELD, f"{name} is setuid or setgid.")
    if member.issparse():
        raise InvalidRequest(FIELD, f"{name} has holes, which are not taken.")
    if member.size < 0 or (member.isdir() and member.size):
        raise InvalidRequest(FIELD, f"{name} has an impossible size.")


def _path(name: str) -> str:
    """The name as a path below the folder that it is unpacked to, or `InvalidRequest`."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(FIELD, f"The path {quote(name)} is not UTF-8.") from None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise InvalidRequest(FIELD, f"The path {quote(name)} leads out of the archive.")
    if any(ord(character) < 32 or character in "\\\x7f" for character in name):
        raise InvalidRequest(FIELD, f"The path {quote(name)} has characters that no path needs.")
    long = any(len(part.encode()) > MOST_NAME_BYTES for part in parts)
    if long or length > MOST_PATH_BYTES or len(parts) > MOST_DEPTH:
        raise InvalidRequest(FIELD, f"The path {quote(name)} is too long.")
    return "/".join(parts)


def _claim(taken: dict[str, str], path: str, folder: bool) -> None:
    """No two entries may be one, nor one lie below a file, in any file system's eyes."""
    parts = unicodedata.normalize("NFKC", path).casefold().split("/") if path else []
    for depth in range(1, len(parts)):
        _take(taken, "/".join(parts[:depth]), path, folder=True)
    if parts:
        _take(taken, "/".join(parts), path, folder=folder)
    elif not folder:
        raise InvalidRequest(FIELD, "A file has no name.")


def _take(taken: dict[str, str], key: str, path: str, *, folder: bool) -> None:
    before = taken.get(key)
    if before is not None and not (folder and before == "folder"):
        raise InvalidRequest(FIELD, f"The path {quote(path)} is there more than once.")
    taken[key] = "folder" if folder else "file"


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    content = tar.extractfile(member)
    if content is None or member.size > MOST_MANIFEST_BYTES:
        return None
    try:
        return json.loads(content.read())
    except (ValueError, RecursionError):
        return None
