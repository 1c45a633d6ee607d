"""How gunicorn serves `vulcan_site.wsgi`; it reads this file by itself.

A request lasts as long as its workload, so there are many threads, most of which wait.
"""

import os
import sys
from pathlib import Path

import environ
from gunicorn.glogging import Logger

from vulcan_site import logs

environ.Env.read_env(Path(__file__).parent / ".env")  # as the settings do, which are not read here
_format, _level = logs.defaults(sys.argv, debug=False)
logconfig_dict = logs.configuration(
    os.environ.get("LOG_FORMAT", _format), os.environ.get("LOG_LEVEL", _level)
)


class ErrorsOnly(Logger):  # type: ignore[misc]
    """The site writes the access line: it knows the user."""

    def access(self, *_: object) -> None:
        pass


logger_class = ErrorsOnly
worker_class = "gthread"
workers = 4
threads = 32
timeout = 60  # of a worker that does not answer its parent; threads that wait do not count
graceful_timeout = 30  # more than `grace_s` of the executor
bind = "127.0.0.1:8000"


def post_worker_init(worker: object) -> None:
    """Take up what waits, and settle what a server before this one left, without a request."""
    from backends_app.executors import executor

    executor().ensure_started(wait_s=0)
