"""The number of proxies in front of gunicorn, and a warning if there is none.

The warning is a system check of `manage.py check --deploy`, and is logged when gunicorn starts.
"""

from collections.abc import Sequence
from typing import Any

import environ
from django.apps import AppConfig
from django.core import checks
from rest_framework.settings import api_settings

ID = "vulcan_site.W001"
WARNING = (
    "No proxy in front of this server (PROXIES=0): clients that send large bodies or read large "
    "responses slowly block its threads, and idle clients use up its connections."
)
HINT = (
    f"Add a proxy that buffers requests, such as ops/nginx/vulcan.conf, and set PROXIES=1; or set "
    f"SILENCED_SYSTEM_CHECKS={ID} if all clients are trusted."
)


def count(env: environ.Env) -> int:
    """Return the number of proxies that append to X-Forwarded-For, from the environment."""
    return int(env.int("PROXIES", default=int(env.bool("HTTPS", default=False))))


def check(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Warn if clients reach the server without a proxy."""
    return [] if api_settings.NUM_PROXIES else [checks.Warning(WARNING, hint=HINT, id=ID)]
