"""Who runs what was submitted, and where: threads of this process, or workers on other machines."""

import threading

from ..conf import load_executor
from ..registry import registry
from .base import Executor

_lock = threading.Lock()
_executor: Executor | None = None


def get_executor() -> Executor:
    """The executor of this process's registry, as ISOLATION_EXECUTOR says."""
    global _executor
    with _lock:
        if _executor is None:
            _executor = load_executor(Executor, registry)
        return _executor


def reload(*, setting: str, **kwargs: object) -> None:
    """Receiver of `setting_changed`: take over the new setting, or refuse it."""
    global _executor
    if setting == "ISOLATION_EXECUTOR":
        with _lock:
            old, _executor = _executor, load_executor(Executor, registry)
        if old is not None:
            old.drain()
