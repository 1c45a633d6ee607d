"""Inspect an archive before a machine gets it: a tar.gz of files, folders and links, within limits.

Nothing is written, and no more is unpacked than the limits allow: reading stops at the first entry
that breaks a rule.
"""

import gzip
import io
import json
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...exceptions import InvalidRequest
from ...utils.text import short_repr
from . import tar

FIELD = "code_archive"
MAX_ENTRIES = 5000
MAX_UNPACKED_BYTES = 64 * 1024 * 1024
MAX_PATH_BYTES, MAX_NAME_BYTES, MAX_DEPTH = 512, 255, 32
# Includes a header and its extensions for each entry, and the padding of blocks.
MAX_STREAM_BYTES = MAX_UNPACKED_BYTES + MAX_ENTRIES * 4096
TOO_LARGE = f"Unpacks to more than {MAX_UNPACKED_BYTES:,} bytes."
MAX_MANIFEST_BYTES = 256 * 1024
SET_ID = 0o6000
APPLE_DOUBLE = b"\0\5\x16\7"  # magic number of macOS's files of resources and attributes


@dataclass
class Archive:
    """An inspected archive: the paths of its files, and the parsed manifest."""

    files: set[str] = field(default_factory=set)
    manifest: Any = None

    def entry(self, entries: Sequence[str]) -> str:
        """Return the file to run: the manifest's `main`, or the first of `entries` that exists.

        As in Node.js, `main` may omit `.js`, or be the folder of an `index.js`.
        """
        main = self.manifest.get("main") if isinstance(self.manifest, dict) else None
        candidates = []
        if isinstance(main, str):
            path = main.removeprefix("./").rstrip("/")
            candidates = [path, f"{path}.js", f"{path}/index.js"]
        for name in (*candidates, *entries):
            if name in self.files:
                return name
        expected = " or ".join(entries)
        if candidates:
            raise InvalidRequest(FIELD, f"Its main, {short_repr(main)}, is not among its files.")
        raise InvalidRequest(
            FIELD, f"Has no {expected} at the top level. Add it, or set a command."
        )


class _BoundedReader:
    """Reader of the unpacked stream that raises when it exceeds the limit."""

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
    """Read the whole archive; raise `InvalidRequest` for anything that breaks a rule.

    `manifest` is the path of the file whose content is returned, parsed as JSON.
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
        raise InvalidRequest(FIELD, f"Invalid tar.gz: {error}.") from error
    except (EOFError, OSError, zlib.error) as error:
        raise InvalidRequest(FIELD, "Truncated or corrupt gzip data.") from error
    if not found.files:
        raise InvalidRequest(FIELD, "Contains no file.")
    return found


def _check_entry(entry: tar.Entry) -> None:
    name = short_repr(entry.name)
    if not (entry.is_folder or entry.is_file or entry.is_link):
        raise InvalidRequest(
            FIELD,
            f"{name} is not a file, a folder or a symbolic link. Hard links and devices are not"
            " supported.",
        )
    if entry.mode & SET_ID:
        raise InvalidRequest(FIELD, f"{name} is setuid or setgid.")
    if entry.size and not entry.is_file:
        raise InvalidRequest(FIELD, f"{name} has an impossible size.")


def _is_apple_double(path: str, read: Callable[[int], bytes]) -> bool:
    """Return whether a file is one that macOS's tar adds beside another; it is not unpacked."""
    return path.rpartition("/")[2].startswith("._") and read(len(APPLE_DOUBLE)) == APPLE_DOUBLE


def _check_link(path: str, target: str) -> None:
    """Raise `InvalidRequest` for a link that leads out of the archive, or could through another.

    `..` is allowed only at the beginning of a target: the folder of a link is never itself a link.
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
    """Return the name as a path below the target folder, or raise `InvalidRequest`."""
    length = len(name.encode())
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise InvalidRequest(FIELD, f"The path {short_repr(name)} leads out of the archive.")
    if any(ord(character) < 32 or character in "\\\x7f" for character in name):
        raise InvalidRequest(
            FIELD, f"The path {short_repr(name)} contains a control character or a backslash."
        )
    is_long = any(len(part.encode()) > MAX_NAME_BYTES for part in parts)
    if is_long or length > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise InvalidRequest(FIELD, f"The path {short_repr(name)} is too long.")
    return "/".join(parts)


def _add_path(paths: dict[str, str], path: str, folder: bool) -> None:
    """Raise `InvalidRequest` if two entries collide, or one is below a file, on any file system."""
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
        raise InvalidRequest(FIELD, f"The path {short_repr(path)} occurs more than once.")
    paths[key] = "folder" if folder else "file"


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
