"""Build the initramfs, a cpio(5) archive with busybox, some kernel modules and the agent."""

import gzip
import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..setup import SetupError

FOLDERS = ("bin", "dev", "image", "proc", "root", "space")
DIRECTORY, PROGRAM, FILE = 0o040755, 0o100755, 0o100644
DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def build(system: Path, modules: Iterable[str], guest: Mapping[str, bytes]) -> bytes:
    """Return the archive. `system` holds the extracted packages of kernel and busybox."""
    found = _Modules(system)
    order: list[str] = []
    for name in modules:
        _append_with_dependencies(name, found, order)
    busybox = (system / "bin" / "busybox").read_bytes()
    listed = "".join(f"{name}.ko\n" for name in order).encode()
    entries = [
        *((folder, DIRECTORY, b"") for folder in FOLDERS),
        ("bin/busybox", PROGRAM, busybox),
        ("init", PROGRAM, guest["init"]),
        ("agent.py", FILE, guest["agent.py"]),
        ("modules", FILE, listed),
        *((f"{name}.ko", FILE, found.read(name)) for name in order),
        ("TRAILER!!!", 0, b""),
    ]
    archive = b"".join(_entry(number, *entry) for number, entry in enumerate(entries, 1))
    return gzip.compress(archive, mtime=0)


class _Modules:
    """The kernel's modules by name, read on demand."""

    def __init__(self, system: Path) -> None:
        self._paths = {
            path.name.partition(".ko")[0].replace("-", "_"): path
            for path in system.glob("lib/modules/*/kernel/**/*.ko*")
        }

    def read(self, name: str) -> bytes:
        if name not in self._paths:
            raise SetupError(f"the kernel has no module {name}")
        data = self._paths[name].read_bytes()
        return lzma.decompress(data) if self._paths[name].suffix == ".xz" else data


def _append_with_dependencies(name: str, modules: _Modules, order: list[str]) -> None:
    """Append the module after those that it depends on."""
    depends = DEPENDS.search(modules.read(name))
    for other in (depends[1].decode() if depends else "").split(","):
        if other:
            _append_with_dependencies(other.replace("-", "_"), modules, order)
    if name not in order:
        order.append(name)


def _entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    """Return an entry in `newc` format: hexadecimal header, name and data, padded to 4 bytes."""
    numbers = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % value for value in numbers) + name.encode() + b"\0"
    return _pad(head) + _pad(data)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
