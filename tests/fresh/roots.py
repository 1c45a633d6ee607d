"""Create new roots of Debian, and run programs inside with their own namespaces."""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import needs
from tests.support.programs import ROOT

# Required by the README, by `pip`, and by a mirror with TLS.
PACKAGES = ("ca-certificates", "make", "python3-venv")
CACHE = needs.CACHE / "fresh"
# The package clients' configuration on this host: mirrors, proxies, certificates.
CLIENT_VARIABLES = (
    *("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "http_proxy", "https_proxy", "no_proxy"),
    *("NPM_CONFIG_REGISTRY", "NODE_EXTRA_CA_CERTS"),
)
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
FOLDER = "/srv/vulcan"  # of the project, inside
KEPT_S = 7 * 24 * 3600  # how long a root is reused before it is created with newer packages

# $1 is the root; the rest is run inside, as a child of its first process. The mounts and everything
# that was started end with the namespaces.
_ENTER = """
set -eu
root=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
[ ! -d /sys/fs/cgroup ] || mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 pts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
for link in fd: stdin:/0 stdout:/1 stderr:/2; do
    ln -s "/proc/self/fd${link#*:}" "$root/dev/${link%%:*}"
done
for device in null zero full random urandom tty kvm fuse; do
    [ -c "/dev/$device" ] || continue
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root/var/cache/pip"
mount --bind "$CACHE/pip" "$root/var/cache/pip"
mount --bind "$CACHE/apt-$RELEASE" "$root/var/cache/apt"
cd "$root"
mkdir -p .host
pivot_root . .host
umount -l .host
rmdir .host
hostname fresh
cd "$FOLDER"
# As the first process it takes in orphans; a shell does that while it waits.
"$@" &
wait "$!"
"""


@dataclass(frozen=True)
class Root:
    """A root of a Debian release, with the project in FOLDER."""

    release: str
    path: Path

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `words` in the project's folder inside.

        It uses the host's network, to download packages. User namespaces would keep an
        engine from running inside, so it requires root, which is the host's root.
        """
        namespaces = ("--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
        return ["unshare", *namespaces, "sh", "-c", _ENTER, "sh", str(self.path), *words]

    def environment(self, **extra: str) -> dict[str, str]:
        """Return the environment of a newcomer's shell, with the package clients' variables."""
        passed = {name: os.environ[name] for name in CLIENT_VARIABLES if name in os.environ}
        return {
            **passed,
            "CACHE": str(CACHE),
            "DEBIAN_FRONTEND": "noninteractive",
            "FOLDER": FOLDER,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PIP_CACHE_DIR": "/var/cache/pip",
            "RELEASE": self.release,
            **extra,
        }

    def run(self, *words: str, timeout_s: float, **extra: str) -> None:
        """Run a command inside; raise CalledProcessError when it fails."""
        environment = self.environment(**extra)
        subprocess.run(self.command(*words), env=environment, timeout=timeout_s, check=True)


@contextmanager
def new_root(release: str) -> Iterator[Root]:
    """Create a minimal root with a clone of the project's HEAD; delete it at the end."""
    for folder in ("pip", f"apt-{release}"):
        (CACHE / folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vulcan-fresh-", dir="/var/tmp") as work:
        root = Path(work) / "root"
        root.mkdir(mode=0o755)
        subprocess.run(["tar", "-xpf", _bootstrap(release), "-C", root], check=True)
        for file in ("/etc/resolv.conf", CERTIFICATES):
            if os.path.exists(file):
                shutil.copy(file, root / file.lstrip("/"))
        clone = ["git", "clone", "--quiet", "--no-hardlinks", ROOT, root / FOLDER.lstrip("/")]
        subprocess.run(clone, check=True)
        yield Root(release, root)


def _bootstrap(release: str) -> Path:
    """Return a minimal root as a tar file; create it again when the cached one is old."""
    digest = hashlib.sha256(repr((release, PACKAGES)).encode()).hexdigest()[:16]
    kept = CACHE / f"{release}-{digest}.tar"
    if not kept.exists() or time.time() - kept.stat().st_mtime > KEPT_S:
        new = kept.with_suffix(f".{os.getpid()}.new")
        try:
            options = ("--variant=minbase", "--format=tar", f"--include={','.join(PACKAGES)}")
            subprocess.run(["mmdebstrap", *options, release, new], check=True)
            new.rename(kept)
        finally:
            new.unlink(missing_ok=True)
    return kept
