"""How many proxies stand in front of gunicorn, and the warning where there is none.

`manage.py check --deploy` gives it as a system check, and gunicorn in its log when it starts.
"""

from collections.abc import Sequence
from typing import Any

import environ
from django.apps import AppConfig
from django.core import checks
from rest_framework.settings import api_settings

ID = "vulcan_site.W001"
WARNING = (
    "No proxy stands in front of this server (PROXIES=0): clients that send large bodies or read "
    "large answers slowly keep its threads waiting, and idle ones take its connections."
)
HINT = (
    f"Put a proxy that buffers requests in front, as by ops/nginx/vulcan.conf, and set PROXIES=1; "
    f"or set SILENCED_SYSTEM_CHECKS={ID} where all clients are trusted."
)


def count(env: environ.Env) -> int:
    """Return how many proxies append to X-Forwarded-For, from the environment."""
    return int(env.int("PROXIES", default=int(env.bool("HTTPS", default=False))))


def check(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Warn of a server that clients reach without a proxy."""
    return [] if api_settings.NUM_PROXIES else [checks.Warning(WARNING, hint=HINT, id=ID)]
