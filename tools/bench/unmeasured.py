"""The benchmark's settings without metrics of requests."""

from tools.bench.settings import *  # noqa: F403
from tools.bench.settings import MIDDLEWARE as MEASURED

MIDDLEWARE = [name for name in MEASURED if not name.startswith("backends_app.")]
