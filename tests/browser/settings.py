"""Settings for browser tests: one real backend, and one that a test can break."""

from vulcan_site.settings import *  # noqa: F403

ISOLATION_BACKENDS = {
    "isolate": {"BACKEND": "backends_app.backends.isolate.IsolateBackend"},
    "fickle": {"BACKEND": "tests.browser.fickle.FickleBackend"},
}
ISOLATION_ROUTES = {
    "source_formats": {"image": "gvisor", "archive": "fickle"},
    "runtimes": {"node": "isolate", "wasm": "isolate", "python": "fickle"},
    "default": "fickle",
}
ISOLATION_RETENTION = {"source_days": 1}  # so that finished workloads can be rerun
