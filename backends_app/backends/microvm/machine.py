"""QEMU's arguments for a machine, without any default device.

One or more processors, memory, a read-only disk, and one port to the agent: no network device, no
file system of the host, no display, no monitor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MB = 1024 * 1024
# Memory for the kernel, the agent and their data, in addition to the workload's. With too little,
# the machine is busy reclaiming memory long before the workload reaches its limit.
OVERHEAD_MB, OVERHEAD_PART = 128, 8
TCG_BUFFER_MB = 128  # for TCG's translation of the guest's code
QEMU_MB = 256  # for QEMU itself, with a margin
CPU = {"kvm": "host", "tcg": "max"}
KERNEL = (
    "quiet",
    "panic=-1",  # reboot at once, which ends QEMU
    "oops=panic",
    "random.trust_cpu=on",
    "tsc=reliable",  # there is no other clock to compare it with
)
BOARD = (
    "isa-serial=off,pit=off,pic=off,rtc=on,auto-kernel-cmdline=off"  # the kernel waits for a clock
)
SANDBOX_OPTIONS = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
FIRMWARE = ("bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin")
# Omits the start of the stream, which names capabilities that only a monitor can set.
NO_CONFIGURATION = ("-global", "migration.send-configuration=off")


@dataclass(frozen=True, kw_only=True)
class MachineSize:
    """The size of a machine by its workload's limits; `ram_mb` includes the overhead."""

    mem_mb: int
    cpus: int

    @property
    def ram_mb(self) -> int:
        return self.mem_mb + OVERHEAD_MB + self.mem_mb // OVERHEAD_PART


def accelerator_args(accelerator: str) -> Sequence[str]:
    how = f"tcg,tb-size={TCG_BUFFER_MB}" if accelerator == "tcg" else accelerator
    return ("-accel", how, "-cpu", CPU[accelerator])


def base_args(board: str = "") -> Sequence[str]:
    """Return the arguments for a board without default devices."""
    machine = f"microvm,acpi=on,{BOARD}{board}"
    return ("-M", machine, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")


def boot_args(
    accelerator: str, size: MachineSize, files: Mapping[str, Path], port: str, tsc_khz: int | None
) -> Sequence[str]:
    """Return the arguments for a machine that boots.

    `port` is the chardev of the agent's port, with the id `agent`. `tsc_khz` is set for a kernel
    that cannot measure the frequency of its time stamp counter.
    """
    boot = _kernel_args(accelerator, files, tsc_khz)
    return (*base_args(), *_device_args(accelerator, size, files, port), *boot)


def snapshot_args(
    accelerator: str, size: MachineSize, files: Mapping[str, Path], port: str, tsc_khz: int | None
) -> Sequence[str]:
    """Return the arguments to boot with memory in the file `ram`, to take a snapshot of it."""
    boot = _kernel_args(accelerator, files, tsc_khz)
    parts = _device_args(accelerator, size, files, port)
    return (*_memory_args(size, files, "share=on"), *parts, *boot)


def restore_args(
    accelerator: str, size: MachineSize, files: Mapping[str, Path], port: str, state: int
) -> Sequence[str]:
    """Return the arguments for a machine that resumes a snapshot, with a private copy of `ram`.

    `state` is the descriptor of the saved device state. The kernel is part of the memory.
    """
    parts = _device_args(accelerator, size, files, port)
    incoming = (*NO_CONFIGURATION, "-incoming", f"fd:{state}")
    return (*_memory_args(size, files, "share=off"), *parts, *incoming)


def _memory_args(size: MachineSize, files: Mapping[str, Path], share: str) -> Sequence[str]:
    path = _escape(files["ram"])
    ram = f"memory-backend-file,id=ram,size={size.ram_mb}M,mem-path={path},{share}"
    return (*base_args(",memory-backend=ram"), "-object", ram)


def _kernel_args(accelerator: str, files: Mapping[str, Path], tsc_khz: int | None) -> Sequence[str]:
    line = [*KERNEL]
    if accelerator == "tcg":  # an emulator does not execute speculatively
        line.append("mitigations=off")
    if tsc_khz is not None:
        line.append(f"tsc_early_khz={tsc_khz}")
    kernel = ("-kernel", str(files["kernel"]), "-initrd", str(files["initramfs"]))
    return (*kernel, "-append", " ".join(line))


def _device_args(
    accelerator: str, size: MachineSize, files: Mapping[str, Path], port: str
) -> Sequence[str]:
    disk = f"file={_escape(files['root'])},format=raw,readonly=on,if=none,id=root,file.locking=off"
    return (
        *accelerator_args(accelerator),
        *("-sandbox", SANDBOX_OPTIONS),
        *("-smp", str(size.cpus), "-m", f"{size.ram_mb}M"),
        *("-drive", disk, "-device", "virtio-blk-device,drive=root"),
        *("-chardev", port, "-device", "virtio-serial-device,max_ports=2"),
        *("-device", "virtserialport,chardev=agent,nr=1"),
    )


def _escape(path: Path) -> str:
    """Return the path with commas doubled, because a comma ends a value."""
    return str(path).replace(",", ",,")
