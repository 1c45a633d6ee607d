"""V8 isolates: one Deno process for each workload, without any permission."""

from .backend import IsolateBackend

__all__ = ["IsolateBackend"]
