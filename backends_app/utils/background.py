"""Run the rounds of background threads: an error is logged and does not end the thread."""

import logging
import threading
from collections.abc import Callable

from django.db import DatabaseError, InterfaceError

from ..exceptions import HostFault
from .database import closing_connections

logger = logging.getLogger(__name__)


def repeat(
    function: Callable[[], object], task: str, stop: threading.Event, pause_s: float = 0.0
) -> None:
    """Call `function` as `run_round` does until `stop` is set, with a pause after each round."""
    while not stop.is_set():
        run_round(function, task)
        stop.wait(pause_s)


def run_round(function: Callable[[], object], task: str) -> None:
    """Call `function`, close its database connections, and log its errors; `task` names it.

    An unreachable database and a fault of the host are expected to pass: a warning each. Anything
    else is a bug.
    """
    try:
        with closing_connections():
            function()
    except (DatabaseError, InterfaceError, HostFault) as error:
        logger.warning("%s failed: %s", task, error)
    except Exception:
        logger.exception("%s failed", task)
