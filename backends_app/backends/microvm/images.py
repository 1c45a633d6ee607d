"""The folder of images: locate artifacts by their key and verify their files.

An artifact is a folder with some files and a manifest. Its name ends with a key, a digest of
everything that it was made from. So an artifact found by its name is current, nothing is ever
changed in place, and servers that share a folder do not see each other's unfinished work.
"""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...exceptions import BackendUnavailable

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 1024
KEY_CHARS = 16
BLOCK_BYTES = 64 * 1024
_ZEROS = bytes(BLOCK_BYTES)


class ArtifactMissing(BackendUnavailable):
    """No artifact exists for the current sources."""


class ArtifactCorrupt(BackendUnavailable):
    """An artifact exists, but differs from its manifest."""


_verified: dict[Path, tuple[object, ...]] = {}
_read_lock = threading.Lock()


def _after_fork() -> None:
    """Replace the lock in a forked child; a thread that held it was not copied."""
    global _read_lock
    _read_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact's name, the names of its files, and its sources, as anything that is JSON."""

    name: str
    files: Sequence[str]
    made_from: Mapping[str, Any] = field(hash=False)

    @property
    def key(self) -> str:
        text = json.dumps([self.files, self.made_from], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_CHARS]

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.key}"


@dataclass(frozen=True)
class VerifiedArtifact:
    """An artifact that matches its manifest: its files by name, and the versions inside.

    `identity` changes when the artifact is made again.
    """

    files: Mapping[str, Path]
    versions: Mapping[str, str]
    identity: tuple[object, ...]


class Images:
    """The artifacts of a folder, each verified again whenever its files have changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def verify(self, artifact: Artifact) -> VerifiedArtifact:
        """Return the verified artifact, or raise `ArtifactMissing` or `ArtifactCorrupt`.

        The first call reads every byte; later ones only check whether a file was touched.
        """
        folder = self.folder / artifact.folder
        manifest = self._manifest(folder, artifact)
        paths = {name: folder / name for name in artifact.files}
        signatures = tuple(_signature(path) for path in (folder / MANIFEST, *paths.values()))
        with _read_lock:  # one thread reads while the others wait for its result
            if _verified.get(folder) != signatures:
                for name, path in paths.items():
                    expected = manifest["files"].get(name, {})
                    if size(path) != expected.get("bytes"):
                        raise ArtifactCorrupt(
                            f"{name} of the image {artifact.name!r} has another size"
                        )
                    if digest(path) != expected.get("sha256"):
                        raise ArtifactCorrupt(
                            f"{name} of the image {artifact.name!r} is not what was made"
                        )
                _verified[folder] = signatures
        versions = {str(name): str(one) for name, one in manifest.get("versions", {}).items()}
        return VerifiedArtifact(paths, versions, signatures)

    def outdated(self, artifact: Artifact) -> Sequence[Path]:
        """Return artifacts of this name that were made from other sources, newest first."""
        found = self.folder.glob(f"{artifact.name}-{'[0-9a-f]' * KEY_CHARS}")
        outdated = [path for path in found if path.name != artifact.folder]
        return sorted(outdated, key=lambda path: path.stat().st_mtime, reverse=True)

    def _manifest(self, folder: Path, artifact: Artifact) -> dict[str, Any]:
        try:
            with (folder / MANIFEST).open("rb") as file:
                found = json.loads(file.read(MAX_MANIFEST_BYTES))
            missing = [name for name in artifact.files if not (folder / name).is_file()]
        except FileNotFoundError:
            raise ArtifactMissing(f"there is no image {artifact.name!r}") from None
        except (OSError, ValueError) as error:
            raise ArtifactCorrupt(
                f"the manifest of the image {artifact.name!r} cannot be read"
            ) from error
        sound = isinstance(found, dict) and all(
            isinstance(found.get(name, {}), dict) for name in ("files", "versions")
        )
        if missing or not sound or not found.get("files"):
            raise ArtifactCorrupt(f"the image {artifact.name!r} is not complete")
        manifest: dict[str, Any] = found
        return manifest


def write_manifest(folder: Path, artifact: Artifact, versions: Mapping[str, str]) -> None:
    """Write the manifest of an artifact whose files are in `folder`."""
    files = {
        name: {"bytes": size(folder / name), "sha256": digest(folder / name)}
        for name in artifact.files
    }
    manifest = {"made_from": artifact.made_from, "versions": dict(versions), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def digest(path: Path) -> str:
    """Return the SHA-256 of each block that is not all zeros, prefixed with its offset.

    Most of a machine's memory is zeros, which take no space in the file and no time here.
    """
    found = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            for offset in _data(file.fileno()):
                block = os.pread(file.fileno(), BLOCK_BYTES, offset)
                if block and block != _ZEROS[: len(block)]:
                    found.update(offset.to_bytes(8, "big") + block)
    except OSError as error:
        raise ArtifactCorrupt(f"{path.name} cannot be read: {error.strerror}") from error
    return found.hexdigest()


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ArtifactCorrupt(f"{path.name} cannot be read: {error.strerror}") from error


def _data(file: int) -> Iterator[int]:
    """Yield the offsets of blocks that are not holes."""
    offset = 0
    while True:
        try:
            offset = os.lseek(file, offset, os.SEEK_DATA) // BLOCK_BYTES * BLOCK_BYTES
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data before the end
                return
            raise
        yield offset
        offset += BLOCK_BYTES


def _signature(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        raise ArtifactCorrupt(f"{path.name} cannot be read: {error.strerror}") from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
