"""List the host programs that tests use, by the Debian packages that provide them."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

# What `make host` installs besides the backends' own set-up (`python -m tests.support.needs`).
PACKAGES: Mapping[str, Sequence[str]] = {
    "busybox-static": ("busybox",),
    "catatonit": ("catatonit",),
    "chromium": ("chromium",),
    "cpio": ("cpio",),
    "crun": ("crun",),
    "curl": ("curl",),
    "docker-registry": ("docker-registry",),
    "gcc": ("cc",),
    "git": ("git",),
    "iproute2": ("ip",),
    "libc6-dev": (),  # the headers that `cc` needs
    "make": ("make",),
    "nginx": ("nginx",),
    "openssl": ("openssl",),
    "podman": ("podman",),
    "postgresql": ("initdb", "postgres"),
    "prometheus": ("prometheus", "promtool"),
    "redis-server": ("redis-server",),
    "systemd": ("systemd-analyze",),
}
# What `setup_backend` installs.
BACKEND_PACKAGES: Mapping[str, Sequence[str]] = {
    "docker.io": ("containerd", "dockerd", "runc"),
    "mmdebstrap": ("mmdebstrap",),
    "qemu-system-x86": ("qemu-system-x86_64",),
    "runsc": ("runsc",),
    "squashfs-tools": ("unsquashfs",),
}
# Essential packages: every Debian has them.
ESSENTIAL: Mapping[str, Sequence[str]] = {
    "bash": ("bash",),
    "coreutils": ("cp", "sleep"),
    "dash": ("sh",),
    "dpkg": ("dpkg-query",),
    "hostname": ("hostname",),
    "libc-bin": ("ldd",),
    "mount": ("mount", "umount"),
    "tar": ("tar",),
    "util-linux": ("runuser", "setpriv", "setsid", "unshare"),
}
# Debian keeps these off the PATH, in a folder for each version.
POSTGRESQL = "/usr/lib/postgresql"
# Packages that a run omits, such as CI in a root where no engine can run: their tests are skipped.
WITHOUT = "TESTS_WITHOUT"
# What tests and their tools fetch, and keep.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vulcan"


def find(program: str) -> str | None:
    """Return the path of a listed program, or None when it is not installed."""
    package_of(program)
    if program in PACKAGES["postgresql"]:
        return max(map(str, Path(POSTGRESQL).glob(f"*/bin/{program}")), default=None)
    return shutil.which(program)


def package_of(program: str) -> str:
    """Return the package that provides a program; an unlisted program is an error of the test."""
    for package, programs in _rows():
        if program in programs:
            return package
    raise LookupError(f"tests use {program!r}, which no package in tests/support/needs.py brings")


def need(*programs: str) -> None:
    """Skip the test on a host that lacks one of the programs; see `without`."""
    if missing := [name for name in programs if find(name) is None]:
        why = f"{', '.join(missing)} missing: run `make host`"
        without(why, *map(package_of, missing))


def without(why: str, *packages: str) -> NoReturn:
    """Skip the test; fail it in CI unless the run is configured to omit these packages."""
    excused = {*packages} <= {*os.environ.get(WITHOUT, "").split()} if packages else False
    if os.environ.get("CI") and not excused:
        pytest.fail(why)
    pytest.skip(why)


def unlisted(program: str) -> bool:
    """Return whether a program that a test started is a host program without a listed package.

    Programs built by tests, this Python and its installed scripts need no package.
    """
    path = Path(program if "/" in program else shutil.which(program) or "/nowhere")
    own = (sys.prefix, tempfile.gettempdir(), POSTGRESQL, str(CACHE))
    if not path.exists() or str(path).startswith(own):
        return False
    if path.resolve() == Path(sys.executable).resolve():
        return False
    return all(path.name not in programs for _, programs in _rows())


def _rows() -> Iterator[tuple[str, Sequence[str]]]:
    for packages in (PACKAGES, BACKEND_PACKAGES, ESSENTIAL):
        yield from packages.items()


if __name__ == "__main__":
    print(*PACKAGES)
