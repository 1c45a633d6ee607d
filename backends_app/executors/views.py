"""The base of the views that use a registry and an executor."""

from typing import Any

from django.http import HttpRequest
from django.views import View

from ..registry import Registry, registry
from . import get_executor, start_executor
from .base import Executor


class ExecutorView(View):
    """Takes a registry and an executor as arguments of `as_view`.

    Both default to those of the process. The first request starts the process's executor, which
    keeps the health in the process's registry current. The owner of a passed registry and executor
    must start them.
    """

    registry: Registry = registry
    executor_override: Executor | None = None

    @property
    def executor(self) -> Executor:
        """The passed executor, or the process's own."""
        return self.executor_override or get_executor()

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        if self.executor_override is None:
            start_executor()
