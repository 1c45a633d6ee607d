"""`python -m tests.fresh`: follow the README in new roots of Debian, and check the results."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fresh import kernel
from tests.fresh.roots import FOLDER, Root, new_root
from tests.support.needs import BACKEND_PACKAGES, PACKAGES, WITHOUT

RELEASES = ("bookworm", "trixie")
# What --quick omits: servers, engines, machines, browsers, and the packages that they need.
LANES_LEFT_OUT = ("browser", "engine", "machine", "server")
QUICK_PACKAGES = ("curl", "gcc", "git", "iproute2", "libc6-dev", "make")
REPORT = ".report.xml"
START_S = 240  # a newcomer waits for packages
KERNEL_S = 1800  # a machine without KVM is slow
ALL_S = 5400


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fresh", description=__doc__)
    parser.add_argument("releases", nargs="*", default=RELEASES, help="releases of Debian")
    parser.add_argument("--start", action="store_true", help="`make run` alone")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="`make run`, and the tests without servers, engines, machines and browsers",
    )
    parser.add_argument(
        "--kernel",
        action="store_true",
        help="what stands on features of the kernel, on the release's own in a machine",
    )
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        sys.exit("New roots are made by root, with mmdebstrap: run `make host` first.")
    for release in options.releases:
        with new_root(release) as root:
            if options.kernel:
                on_own_kernel(root)
                continue
            with step(release, "make run, until the pasted command answers"):
                start(root)
            if options.quick:
                with step(release, "the tests without servers, engines, machines and browsers"):
                    fast_tests(root)
            elif not options.start:
                with step(release, ".ci/run: make host, make lint, make test"):
                    run_suite(root, {"FRESH": "inside"}, "bash", ".ci/run")


@contextmanager
def step(release: str, what: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"--- {release}: {what}", flush=True)
    yield
    print(f"--- {release}: done in {time.monotonic() - started:.0f} s", flush=True)


def start(root: Root) -> None:
    """Start `make run`, and run the command that it prints."""
    with subprocess.Popen(
        root.command("make", "run"),
        env=root.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        timer = threading.Timer(START_S, server.kill)
        timer.start()
        try:
            printed = ""
            for line in server.stdout:
                print(line, end="")
                printed += line
                if re.search(r"-d '\{.*\}'$", line):
                    break
            else:
                sys.exit("make run ended before it printed a command")
            command = printed[printed.index("curl ") :]
            answer = subprocess.run(
                ["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60
            )
            if json.loads(answer.stdout)["output"] != {"sum": 3}:
                sys.exit(f"the pasted command returned {answer.stdout}")
        finally:
            timer.cancel()
            server.kill()  # and, by --kill-child, all that it started


def on_own_kernel(root: Root) -> None:
    """Run the tests of kernel features in a machine with the kernel of the release."""
    with step(root.release, "tests of kernel features, on the own kernel"):
        install(root, "linux-image-cloud-amd64", "iproute2", "gcc", "libc6-dev", "zstd")
        root.run("make", ".venv/.installed", timeout_s=START_S)
        kernel.run_tests(root, KERNEL_S)


def fast_tests(root: Root) -> None:
    """Run the tests outside of LANES_LEFT_OUT."""
    install(root, *QUICK_PACKAGES)
    without = {*PACKAGES, *BACKEND_PACKAGES} - {*QUICK_PACKAGES}
    command = [".venv/bin/python", "manage.py", "test", "--parallel", "2"]
    for lane in LANES_LEFT_OUT:
        command += ["--exclude-tag", lane]
    run_suite(root, {WITHOUT: " ".join(sorted(without))}, *command)


def install(root: Root, *packages: str) -> None:
    root.run("apt-get", "update", "-qq", timeout_s=START_S)
    command = ("apt-get", "install", "-qq", "--no-install-recommends", *packages)
    root.run(*command, timeout_s=START_S)


def run_suite(root: Root, extra: dict[str, str], *command: str) -> None:
    """Run the tests inside as CI does, and list the skipped ones by name."""
    addopts = f"--junitxml={FOLDER}/{REPORT}"
    root.run(*command, timeout_s=ALL_S, CI="true", PYTEST_ADDOPTS=addopts, **extra)
    report = ElementTree.parse(root.path / FOLDER.lstrip("/") / REPORT)
    skipped = Counter(
        (case.get("classname"), case.find("skipped").get("message"))
        for case in report.iter("testcase")
        if case.find("skipped") is not None
    )
    for (name, why), times in sorted(skipped.items()):
        print(f"skipped  {times:4d}  {name}: {why}")


if __name__ == "__main__":
    main()
