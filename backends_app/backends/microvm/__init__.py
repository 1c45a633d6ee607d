"""MicroVMs: a machine of its own for each workload, by QEMU."""

from .backend import MicroVMBackend

__all__ = ["MicroVMBackend"]
