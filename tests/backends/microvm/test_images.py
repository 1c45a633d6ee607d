"""Artifacts have to match their manifest byte for byte."""

import os
import threading
from pathlib import Path

import pytest

from backends_app.backends.microvm import images, parts
from backends_app.backends.microvm.images import (
    Artifact,
    ArtifactCorrupt,
    ArtifactMissing,
    Images,
    digest,
    write_manifest,
)
from backends_app.backends.microvm.machine import MachineSize

PART = Artifact(name="thing", files=("a", "b"), made_from={"of": "nothing"})


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """An artifact with a file that is mostly holes."""
    folder = tmp_path / PART.folder
    folder.mkdir()
    (folder / "a").write_bytes(b"a" * 100_000)
    with (folder / "b").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"b")
        file.truncate(20_000_000)
    write_manifest(folder, PART, {"what": "1.0"})
    return folder


def test_artifact_is_found(made: Path):
    found = Images(made.parent).verify(PART)
    assert found.files == {"a": made / "a", "b": made / "b"}
    assert found.versions == {"what": "1.0"}


def test_unbuilt_artifact_is_missing(tmp_path: Path):
    with pytest.raises(ArtifactMissing, match="there is no image 'thing'"):
        Images(tmp_path).verify(PART)


def test_different_sources_give_a_different_artifact(made: Path):
    other = Artifact(name="thing", files=("a", "b"), made_from={"of": "something"})
    with pytest.raises(ArtifactMissing):
        Images(made.parent).verify(other)
    assert Images(made.parent).outdated(other) == [made]
    assert Images(made.parent).outdated(PART) == []


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(70_000)
        file.write(b"\x01")


def stretch(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


@pytest.mark.parametrize("name", PART.files)
@pytest.mark.parametrize("change", [truncate, overwrite, stretch, os.unlink])
def test_changed_artifact_is_rejected_after_it_was_verified(made: Path, name: str, change):
    known = Images(made.parent)
    known.verify(PART)
    change(made / name)
    for store in (known, Images(made.parent)):
        for _ in range(2):
            with pytest.raises(ArtifactCorrupt) as caught:
                store.verify(PART)
            assert str(made) not in str(caught.value)


def test_changed_byte_with_restored_mtime_is_detected(made: Path):
    known = Images(made.parent)
    known.verify(PART)
    before = (made / "a").stat()
    overwrite(made / "a")
    os.utime(made / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactCorrupt):
        known.verify(PART)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 1}', '{"files": {}}', "\0" * 99])
def test_invalid_manifest_is_corrupt(made: Path, text: str):
    (made / images.MANIFEST).write_text(text)
    with pytest.raises(ArtifactCorrupt):
        Images(made.parent).verify(PART)


def test_every_byte_is_read_once(made: Path, monkeypatch):
    """Per process, however many stores and threads it has."""
    reads: list[Path] = []
    monkeypatch.setattr(images, "digest", lambda path: (reads.append(path), digest(path))[1])
    threads = [threading.Thread(target=Images(made.parent).verify, args=[PART]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reads) == [made / "a", made / "b"]


def test_digest_treats_holes_as_zeros(tmp_path: Path):
    """A copy of a file may have other holes, but has the same content."""
    with (tmp_path / "holes").open("wb") as file:
        file.seek(1_000_000)
        file.write(b"x" * 70_000)
        file.truncate(3_000_000)
    (tmp_path / "zeros").write_bytes((tmp_path / "holes").read_bytes())
    assert digest(tmp_path / "holes") == digest(tmp_path / "zeros")


def test_digest_depends_on_block_offsets(tmp_path: Path):
    block = images.BLOCK_BYTES
    (tmp_path / "one").write_bytes(bytes(block) + b"x" * block)
    (tmp_path / "two").write_bytes(b"x" * block + bytes(block))
    assert digest(tmp_path / "one") != digest(tmp_path / "two")


def test_snapshot_is_valid_only_for_what_it_was_taken_with():
    size = MachineSize(mem_mb=512, cpus=1)
    taken = parts.snapshot("python", "7.2.22", "tcg", size)
    assert parts.snapshot("python", "7.2.22", "tcg", size).key == taken.key
    others = [
        parts.snapshot("python", "7.2.23", "tcg", size),
        parts.snapshot("python", "7.2.22", "kvm", size),
        parts.snapshot("python", "7.2.22", "tcg", MachineSize(mem_mb=256, cpus=1)),
        parts.snapshot("python", "7.2.22", "tcg", MachineSize(mem_mb=512, cpus=2)),
        parts.snapshot("go", "7.2.22", "tcg", size),
    ]
    assert len({taken.key, *(other.key for other in others)}) == 1 + len(others)
