"""The benchmark's settings without metrics of requests and registry reads."""

from backends_app import signals
from tools.bench.settings import *  # noqa: F403
from tools.bench.settings import MIDDLEWARE as MEASURED

MIDDLEWARE = [name for name in MEASURED if not name.startswith("backends_app.")]
signals.registry_read.connect = lambda *args, **named: None
