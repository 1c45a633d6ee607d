"""MicroVMs: one QEMU machine per workload."""

from .backend import MicroVMBackend

__all__ = ["MicroVMBackend"]
