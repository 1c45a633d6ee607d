"""V8 isolates: one Deno process per workload, without any permission."""

from .backend import IsolateBackend

__all__ = ["IsolateBackend"]
