"""Use a guest's root as a folder on the host, to run the same programs as in a machine."""

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from backends_app.backends.microvm import parts
from backends_app.backends.microvm.images import Images
from backends_app.backends.microvm.runtimes import RUNTIMES
from tests.conformance.cases import LIMIT_S, run

# $0 is the root, $1 the folder inside; the network is only a loopback, as in a machine.
_ENTER = """
mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && ip link set lo up
folder=$1; shift
exec chroot --userspec=1000:1000 "$0" sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""


@dataclass(frozen=True)
class GuestRoot:
    """The root of a runtime, unpacked."""

    runtime: str
    path: Path

    def run(self, archive: bytes, command: Sequence[str], mem_mb: int) -> tuple[int, str]:
        """Unpack an archive in a new folder and run a command there; return code and stdout."""
        with tempfile.TemporaryDirectory(dir=self.path / "tmp") as folder:
            Path(folder).chmod(0o777)
            with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
                packed.extractall(folder, filter="data")
            namespaces = ("--mount", "--pid", "--net", "--fork", "--kill-child")
            inside = f"/tmp/{Path(folder).name}"
            environment: Mapping[str, str] = RUNTIMES[self.runtime].environment_for(mem_mb)
            done = subprocess.run(
                ["unshare", *namespaces, "sh", "-ec", _ENTER, self.path, inside, *command],
                env=environment | {"HOME": inside, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LIMIT_S,
                check=False,
            )
            return done.returncode, done.stdout


@contextmanager
def guest_root(folder: Path, runtime: str) -> Iterator[GuestRoot]:
    """Unpack the root of a runtime's machines; delete it at the end."""
    image = Images(folder).verify(parts.root(runtime)).files["root"]
    with tempfile.TemporaryDirectory(prefix="vulcan-", dir="/var/tmp") as unpacked:
        root = Path(unpacked, "root")
        run("unsquashfs", "-quiet", "-no-progress", "-dest", root, image)
        (root / "tmp").chmod(0o1777)
        yield GuestRoot(runtime, root)
