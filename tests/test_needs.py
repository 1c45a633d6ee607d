"""One list has the programs that tests use and the packages that provide them."""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backends_app.backends.gvisor.host import PACKAGES as GVISOR_PACKAGES
from backends_app.backends.microvm.build import PACKAGES as MICROVM_PACKAGES
from tests.support import needs
from tests.support.programs import ELSEWHERE, ROOT

ROWS = [
    (package, program)
    for table in (needs.PACKAGES, needs.BACKEND_PACKAGES, needs.ESSENTIAL)
    for package, programs in table.items()
    for program in programs
]


@functools.cache
def installed() -> dict[str, set[str]]:
    """Return every installed Debian package with the packages that it depends on."""
    needs.need("dpkg-query")
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package}\t${Pre-Depends}, ${Depends}\n"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = (line.split("\t") for line in shown.stdout.splitlines())
    return {name: set(re.findall(r"(?:^|[,|]) *([a-z0-9.+-]+)", given)) for name, given in rows}


def provided_by(package: str) -> set[str]:
    """Return the package and all packages installed with it."""
    found: set[str] = set()
    waiting = [package]
    while waiting:
        name = waiting.pop()
        if name in installed() and name not in found:
            found.add(name)
            waiting += installed()[name]
    return found


@pytest.mark.parametrize(("package", "program"), ROWS)
def test_a_listed_package_provides_its_program(package: str, program: str):
    if shutil.which("dpkg-query") is None:
        needs.without("dpkg-query is missing: this is no Debian")
    if package not in installed():
        needs.without(f"{package} missing: run `make host`", package)
    path = needs.find(program)
    assert path is not None
    # Debian's names of one file: as called, with links resolved, and from before /bin was a link.
    names = {path, str(Path(path).resolve())}
    names |= {name.removeprefix("/usr") for name in names}
    owners = subprocess.run(
        ["dpkg-query", "--search", *names], capture_output=True, text=True, check=False
    )
    of = {line.split(":")[0] for line in owners.stdout.splitlines()}
    assert of & provided_by(package), (names, of)


def test_make_host_installs_the_listed_packages():
    assert "$(PY) -m tests.support.needs" in (ROOT / "Makefile").read_text()
    command = [sys.executable, "-m", "tests.support.needs"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == list(needs.PACKAGES)
    assert {*needs.BACKEND_PACKAGES} <= {*GVISOR_PACKAGES, *MICROVM_PACKAGES}


def test_a_program_without_a_package_is_found(tmp_path: Path):
    assert needs.unlisted("nproc")  # from coreutils; no test uses it
    assert needs.unlisted("/usr/bin/nproc")
    own = tmp_path / "nproc"
    own.touch()
    for known in (sys.executable, "bash", "/bin/sh", str(own), "there-is-no-such-program"):
        assert not needs.unlisted(known)
    with pytest.raises(LookupError, match="nproc"):
        needs.need("nproc")


def test_a_test_that_starts_an_unlisted_program_fails(pytester: pytest.Pytester):
    pytester.makeconftest("from tests.conftest import _programs_are_listed, pytest_configure")
    pytester.makepyfile(
        """
        import subprocess

        def test_listed():
            subprocess.run(["sh", "-c", "exit"], check=True)

        def test_unlisted():
            subprocess.run(["nproc", "--version"], check=True)
        """
    )
    result = pytester.runpytest_subprocess(*ELSEWHERE)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*nproc*"])


def test_a_child_gets_sigint_even_when_the_run_ignores_it(pytester: pytest.Pytester):
    """As a shell without job control starts `make test &`."""
    pytester.makeconftest("from tests.conftest import pytest_configure")
    pytester.makepyfile(
        """
        import signal, subprocess, sys

        def test_interrupt():
            code = "import sys, time; print(flush=True); time.sleep(60)"
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            with child:
                child.stdout.readline()
                child.send_signal(signal.SIGINT)
            assert child.returncode == -signal.SIGINT
        """
    )
    done = subprocess.run(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-m", "pytest", *ELSEWHERE],
        cwd=pytester.path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout


def test_ci_skips_only_the_packages_that_a_run_omits(monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv(needs.WITHOUT, "podman crun")
    with pytest.raises(pytest.skip.Exception):
        needs.without("podman missing", "podman")
    for packages in (["podman", "cpio"], []):
        with pytest.raises(pytest.fail.Exception):
            needs.without("more is missing", *packages)
    monkeypatch.delenv(needs.WITHOUT)
    with pytest.raises(pytest.fail.Exception):
        needs.without("podman missing", "podman")
