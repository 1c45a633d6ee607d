"""The site for tests in a browser: one real backend, and one that fails when a test wants that."""

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
ISOLATION_RETENTION = {"source_days": 1}  # so that what has ended can be run again
