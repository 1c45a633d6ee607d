"""The site's settings for fault tests: one backend, and shorter timeouts."""

import os

from vulcan_site.settings import *  # noqa: F403
from vulcan_site.settings import ISOLATION_EXECUTOR

ISOLATION_BACKENDS = {
    "isolate": {
        "BACKEND": "tests.faults.backends.PoisonableBackend",
        "OPTIONS": {"deno": os.environ.get("DENO") or None},
    }
}
ISOLATION_ROUTES = {"runtimes": {"node": "isolate", "wasm": "isolate"}, "default": "isolate"}
ISOLATION_EXECUTOR = {
    "BACKEND": os.environ.get("EXECUTOR_CLASS") or ISOLATION_EXECUTOR["BACKEND"],
    "OPTIONS": {
        **ISOLATION_EXECUTOR.get("OPTIONS", {}),
        "heartbeat_s": 0.5,
        "lost_after_s": float(os.environ.get("LOST_AFTER_S", "8")),
        "grace_s": float(os.environ.get("GRACE_S", "20")),
    },
}
SILENCED_SYSTEM_CHECKS = ["backends_app.W001"]
