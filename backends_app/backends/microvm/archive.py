"""Judges an archive before a machine sees it: a tar.gz of files, folders and links, within bounds.

Nothing is written anywhere, and no more is unpacked than the bounds allow: the first entry that
breaks a rule ends the reading.
"""

import gzip
import io
import json
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...exceptions import InvalidRequest, short_repr
from . import tar

FIELD = "code_archive"
MAX_ENTRIES = 5000
MAX_UNPACKED_BYTES = 64 * 1024 * 1024
MAX_PATH_BYTES, MAX_NAME_BYTES, MAX_DEPTH = 512, 255, 32
# With a header and its extensions for each entry, and what fills up blocks.
MAX_STREAM_BYTES = MAX_UNPACKED_BYTES + MAX_ENTRIES * 4096
TOO_LARGE = f"Unpacks to more than {MAX_UNPACKED_BYTES:,} bytes."
MAX_MANIFEST_BYTES = 256 * 1024
SET_ID = 0o6000
APPLE_DOUBLE = b"\0\5\x16\7"  # how a file begins that holds what macOS keeps beside another


@dataclass
class Archive:
    """What was found: the paths of its files, and the contents of the one that was asked for."""

    files: set[str] = field(default_factory=set)
    manifest: Any = None

    def entry(self, entries: Sequence[str]) -> str:
        """The file to run: the manifest's `main`, or the first of `entries` that is there.

        As Node.js does, `main` may leave out `.js`, or be the folder of an `index.js`.
        """
        main = self.manifest.get("main") if isinstance(self.manifest, dict) else None
        wanted = []
        if isinstance(main, str):
            path = main.removeprefix("./").rstrip("/")
            wanted = [path, f"{path}.js", f"{path}/index.js"]
        for name in (*wanted, *entries):
            if name in self.files:
                return name
        expected = " or ".join(entries)
        if wanted:
            raise InvalidRequest(FIELD, f"Its main, {short_repr(main)}, is not among its files.")
        raise InvalidRequest(FIELD, f"Has no {expected} at its top; add it, or give a command.")


class _BoundedReader:
    """What is unpacked, as far as the bounds go."""

    def __init__(self, packed: bytes) -> None:
        self._unpacked = gzip.GzipFile(fileobj=io.BytesIO(packed))
        self._left = MAX_STREAM_BYTES

    def read(self, size: int) -> bytes:
        data = self._unpacked.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise InvalidRequest(FIELD, TOO_LARGE)
        return data


def inspect_archive(packed: bytes, manifest: str | None = None) -> Archive:
    """Read all of it; raises `InvalidRequest` for what breaks a rule.

    `manifest` is the file whose content is wanted, as JSON.
    """
    found = Archive()
    paths: dict[str, str] = {}  # paths as a careless file system would compare them, and their kind
    unpacked = 0
    try:
        for number, (entry, read) in enumerate(tar.entries(_BoundedReader(packed).read), 1):
            if number > MAX_ENTRIES:
                raise InvalidRequest(FIELD, f"Has more than {MAX_ENTRIES:,} entries.")
            _check_entry(entry)
            path = _check_path(entry.name)
            unpacked += entry.size
            if unpacked > MAX_UNPACKED_BYTES:
                raise InvalidRequest(FIELD, TOO_LARGE)
            if entry.is_file and _is_apple_double(path, read):
                continue
            _add_path(paths, path, entry.is_folder)
            if entry.is_folder:
                continue
            if entry.is_link:
                _check_link(path, entry.target)
                continue
            found.files.add(path)
            if path == manifest and entry.size <= MAX_MANIFEST_BYTES:
                found.manifest = _json(read(entry.size))
    except tar.InvalidTar as error:
        raise InvalidRequest(FIELD, f"Is no tar.gz that is taken: it {error}.") from error
    except (EOFError, OSError, zlib.error) as error:
        raise InvalidRequest(FIELD, "Is no complete gzip.") from error
    if not found.files:
        raise InvalidRequest(FIELD, "Has no file in it.")
    return found


def _check_entry(entry: tar.Entry) -> None:
    name = short_repr(entry.name)
    if not (entry.is_folder or entry.is_file or entry.is_link):
        raise InvalidRequest(
            FIELD,
            f"{name} is neither a file nor a folder, nor a symbolic link: hard links and devices"
            " are not taken.",
        )
    if entry.mode & SET_ID:
        raise InvalidRequest(FIELD, f"{name} is setuid or setgid.")
    if entry.size and not entry.is_file:
        raise InvalidRequest(FIELD, f"{name} has an impossible size.")


def _is_apple_double(path: str, read: Callable[[int], bytes]) -> bool:
    """Tell whether a file is what the tar of macOS puts beside another; it is not unpacked."""
    return path.rpartition("/")[2].startswith("._") and read(len(APPLE_DOUBLE)) == APPLE_DOUBLE


def _check_link(path: str, target: str) -> None:
    """Refuse a link that leads out of the archive, or could by way of another one.

    What goes up does that first, from a folder that is none of the archive's links.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    if not target:
        raise InvalidRequest(FIELD, f"The link {short_repr(path)} leads nowhere.")
    if target.startswith("/") or ".." in parts[up:] or up > path.count("/"):
        raise InvalidRequest(
            FIELD, f"The link {short_repr(path)} leads out of the archive, to {short_repr(target)}."
        )
    _check_path("/".join(parts[up:]))


def _check_path(name: str) -> str:
    """The name as a path below the folder that it is unpacked to, or `InvalidRequest`."""
    length = len(name.encode())
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise InvalidRequest(FIELD, f"The path {short_repr(name)} leads out of the archive.")
    if any(ord(character) < 32 or character in "\\\x7f" for character in name):
        raise InvalidRequest(
            FIELD, f"The path {short_repr(name)} has characters that no path needs."
        )
    long = any(len(part.encode()) > MAX_NAME_BYTES for part in parts)
    if long or length > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise InvalidRequest(FIELD, f"The path {short_repr(name)} is too long.")
    return "/".join(parts)


def _add_path(paths: dict[str, str], path: str, folder: bool) -> None:
    """No two entries may be one, nor one lie below a file, in any file system's eyes."""
    parts = unicodedata.normalize("NFKC", path).casefold().split("/") if path else []
    for depth in range(1, len(parts)):
        _add_key(paths, "/".join(parts[:depth]), path, folder=True)
    if parts:
        _add_key(paths, "/".join(parts), path, folder=folder)
    elif not folder:
        raise InvalidRequest(FIELD, "A file has no name.")


def _add_key(paths: dict[str, str], key: str, path: str, *, folder: bool) -> None:
    before = paths.get(key)
    if before is not None and not (folder and before == "folder"):
        raise InvalidRequest(FIELD, f"The path {short_repr(path)} is there more than once.")
    paths[key] = "folder" if folder else "file"


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
