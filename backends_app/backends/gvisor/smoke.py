"""A minimal image with one program that identifies the guest's kernel.

It prints the output of syslog(2). gVisor's kernel log begins with its name; any other kernel denies
the call to a process without CAP_SYSLOG, which no workload has.
"""

import hashlib
import io
import struct
import tarfile

GVISOR_LOG_MARKER = "Starting gVisor..."
BASE = 0x400000
MACHINES = {"x86_64": 62, "amd64": 62}

# syslog(SYSLOG_ACTION_READ_ALL, stack, 4096), write(1, stack, length), exit(length < 0)
_CODE = bytes.fromhex(
    "4881ec00100000"  # sub rsp, 4096
    "bf03000000"  # mov edi, 3
    "4889e6"  # mov rsi, rsp
    "ba00100000"  # mov edx, 4096
    "b867000000"  # mov eax, 103 (syslog)
    "0f05"  # syscall
    "4889c2"  # mov rdx, rax
    "4889c3"  # mov rbx, rax
    "bf01000000"  # mov edi, 1
    "4889e6"  # mov rsi, rsp
    "b801000000"  # mov eax, 1 (write)
    "0f05"  # syscall
    "48c1eb3f"  # shr rbx, 63
    "89df"  # mov edi, ebx
    "b83c000000"  # mov eax, 60 (exit)
    "0f05"  # syscall
)


def program() -> bytes:
    """Return an ELF file with one segment that holds the code, see elf(5)."""
    headers = 64 + 56
    size = headers + len(_CODE)
    identification = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, MACHINES["x86_64"], 1, BASE + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, 0x1000)
    return identification + header + segment + _CODE


def layer() -> bytes:
    """Return the image's file system as a tar, with the same bytes each time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for folder in ("tmp",):  # where the writable space of a workload is mounted
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        entry = tarfile.TarInfo("smoke")
        entry.mode, entry.size = 0o755, len(program())
        tar.addfile(entry, io.BytesIO(program()))
    return packed.getvalue()


REPOSITORY = "vulcan/smoke"
TAG = hashlib.sha256(layer()).hexdigest()[:12]
COMMAND = ("/smoke",)
