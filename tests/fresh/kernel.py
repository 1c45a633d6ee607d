"""Boot a machine with the kernel of a Debian release and a root of tests.fresh as its disk."""

import re
import subprocess
import tempfile
import threading
from pathlib import Path

from tests.fresh.roots import FOLDER, Root

DISK, MEMORY_MB = "6G", 3072
# Tests of kernel features: namespaces, Landlock, seccomp, locks.
TESTS = ("tests/sandbox", "tests/backends/test_isolate_attacks.py", "tests/test_slots.py")
INIT = f"{FOLDER}/tests/fresh/init.sh"
ENDED = re.compile(r"ended with (\d+)")


def run_tests(root: Root, timeout_s: float) -> None:
    """Boot the root's installed kernel and run TESTS; raise when they fail.

    Only some tests: QEMU without KVM is slow.
    """
    [kernel] = (root.path / "boot").glob("vmlinuz-*")
    [initrd] = (root.path / "boot").glob("initrd.img-*")
    with tempfile.TemporaryDirectory(prefix="vulcan-kernel-", dir="/var/tmp") as folder:
        disk = Path(folder, "disk")
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root.path, disk, DISK], check=True)
        words = f"root=/dev/vda rw console=ttyS0 quiet panic=-1 init={INIT}"
        tests = " ".join(TESTS)
        command = [
            *("qemu-system-x86_64", "-M", "q35", "-m", str(MEMORY_MB), "-cpu", "max"),
            *("-accel", "tcg", "-smp", "2"),
            *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
            *("-drive", f"file={disk},format=raw,if=virtio", "-kernel", kernel, "-initrd", initrd),
            *("-append", f'{words} TESTS="{tests}"'),
        ]
        printed = ""
        with subprocess.Popen(
            [*map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as machine:
            too_late = threading.Timer(timeout_s, machine.kill)
            too_late.start()
            try:
                for line in machine.stdout:
                    print(line, end="", flush=True)
                    printed += line
            finally:
                too_late.cancel()
                machine.kill()
        found = ENDED.search(printed)
        if found is None or found[1] != "0":
            raise SystemExit(f"the tests did not pass on the kernel of {root.release}")
