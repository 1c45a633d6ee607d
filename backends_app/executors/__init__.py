"""Executors run submitted workloads in threads of this process or in workers on other machines."""

import threading

from ..conf import load_executor
from ..registry import registry
from .base import Executor

_lock = threading.Lock()
_executor: Executor | None = None


def get_executor() -> Executor:
    """Return the executor of this process's registry, as configured by ISOLATION_EXECUTOR."""
    global _executor
    with _lock:
        if _executor is None:
            _executor = load_executor(Executor, registry)
        return _executor


def start_executor(wait_s: float = 1.0) -> Executor:
    """Return this process's executor, and start it unless it is started.

    The caller that starts it waits up to `wait_s` seconds for health results.
    """
    executor = get_executor()
    executor.ensure_started(wait_s)
    return executor


def reload(*, setting: str, **kwargs: object) -> None:
    """Receiver of `setting_changed`: apply the new setting, or raise `InvalidSetting`."""
    global _executor
    if setting == "ISOLATION_EXECUTOR":
        with _lock:
            old, _executor = _executor, load_executor(Executor, registry)
        if old is not None:
            old.drain()
