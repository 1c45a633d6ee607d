"""gVisor: OCI images in containers whose kernel is `runsc`."""

from .backend import GVisorBackend

__all__ = ["GVisorBackend"]
