"""Create the folder in which all processes of one server store their metrics together.

prometheus_client requires such a folder. It is new for each server, so that nothing is counted
twice, and locked while one of the server's processes lives. The next server removes what a killed
one has left behind.

Standard library only: the parent of gunicorn's workers imports this, and its imports are stale
after a reload.
"""

import functools
import shutil
import tempfile
from pathlib import Path

from ..utils.lockfiles import FOLDER, ensure_private_dir, locked, try_lock, unlock

ENV_VAR = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks for the folder, at its import."""

PREFIX = "metrics."


@functools.cache
def create(parent: Path) -> Path:
    """Create and lock a new folder in `parent` and return it; the same one for each later call.

    Forked processes keep the lock. Raise `PermissionError` when another user owns or can access
    `parent`.
    """
    try:
        ensure_private_dir(parent)
    except PermissionError as error:
        raise PermissionError(f"{parent}: {error.strerror}; set another RUNTIME_DIR") from error
    with locked(parent, FOLDER):
        for leftover in parent.glob(f"{PREFIX}*/"):
            if (descriptor := try_lock(leftover, FOLDER)) is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                unlock(descriptor)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try_lock(folder, FOLDER)
    return folder


def remove(folder: Path) -> None:
    """Remove the folder, at the end of the server."""
    shutil.rmtree(folder, ignore_errors=True)
