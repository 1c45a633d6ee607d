"""Settings of the Vulcan site, with safe defaults for production, adjusted by the environment.

docs/configuration.md lists the variables, which come from the environment or from a file `.env`
beside manage.py.
"""

import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key

from . import logs, proxies

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
env.read_env(BASE_DIR / ".env")

DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default="") or get_random_secret_key()
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
HTTPS = env.bool("HTTPS", default=False)
SILENCED_SYSTEM_CHECKS = env.list("SILENCED_SYSTEM_CHECKS", default=[])

ROOT_URLCONF = "vulcan_site.urls"
WSGI_APPLICATION = "vulcan_site.wsgi.application"
TEST_RUNNER = "vulcan_site.test_runner.PytestRunner"

# Other origins may call the API with a token, but never with cookies.
CORS_ALLOWED_ORIGINS = CORS_ORIGINS = env.list("CORS_ORIGINS", default=[])
CORS_URLS_REGEX = r"^/v1(/|$)"
CORS_EXPOSE_HEADERS = ["ETag", "Location", "Retry-After", "X-Request-ID"]
CORS_ALLOW_HEADERS = (
    *("accept", "authorization", "content-type", "idempotency-key", "if-none-match"),
    *("last-event-id", "x-request-id"),
)

INSTALLED_APPS = [
    "vulcan_site",
    "backends_app",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "rest_framework",
    "knox",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    *(["corsheaders"] if CORS_ORIGINS else []),
]

MIDDLEWARE = [
    "vulcan_site.last_resort.LastResortMiddleware",  # first: answers failures of all others
    "backends_app.observability.probes.ProbeMiddleware",  # probes need none of the following
    "vulcan_site.requests.RequestMiddleware",  # logs the responses of all that follow
    "backends_app.observability.request_metrics.RequestMetricsMiddleware",
    "vulcan_site.policy.ContentPolicyMiddleware",
    "vulcan_site.content_types.ContentTypeMiddleware",  # before a query or a body is decoded
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    *(["corsheaders.middleware.CorsMiddleware"] if CORS_ORIGINS else []),
    "vulcan_site.sessions.StrictSessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "vulcan_site.signing_in.SignInThrottleMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "vulcan_site.admin_lookups.IncorrectLookupMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{BASE_DIR}/db.sqlite3")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
    DATABASES["default"]["CONN_MAX_AGE"] = 60
    # A file, since in-memory databases lock differently from the one in production.
    DATABASES["default"]["TEST"] = {"NAME": BASE_DIR / "test.sqlite3"}
else:  # waiting threads release their connection, so a few connections serve many threads
    if DATABASES["default"]["ENGINE"] == "django.db.backends.postgresql":
        DATABASES["default"]["ENGINE"] = "vulcan_site.postgresql"
    DATABASES["default"]["OPTIONS"] = {
        # Short timeouts: without its database a server has no connections, and each request waits
        # for one. `vulcan_site.postgresql` bounds how many wait at once.
        "pool": {
            "min_size": 1,
            "max_size": 16,
            "timeout": 1.5,
            "reconnect_timeout": 2,  # else the pool retries after ever longer pauses
        },
        "connect_timeout": 2,
        "tcp_user_timeout": 5_000,  # ms; else a query to a vanished host blocks for many minutes
    }
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = env.str("STATIC_ROOT", default="") or None
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = STATIC_ROOT is None  # else serve files from the packages

SECURE_SSL_REDIRECT = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_HSTS_SECONDS = 31536000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS
SECURE_HSTS_PRELOAD = HTTPS
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_AGE = 7 * 24 * 3600
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

# Throttles count here. With a cache per process, clients get their limit once per process.
CACHES = {"default": env.cache_url("CACHE_URL", default="locmemcache://")}
if CACHES["default"]["BACKEND"] == "django.core.cache.backends.locmem.LocMemCache":
    # Large enough that a client with many addresses cannot evict the counts of others.
    CACHES["default"]["OPTIONS"] = {"MAX_ENTRIES": 100_000}


def _rate(variable: str, default: str) -> str | None:
    """Read a rate in DRF's format; empty means no limit."""
    rate = env.str(variable, default=default)
    if rate and not re.fullmatch(r"\d+/(s|sec|m|min|h|hour|d|day)", rate):
        raise ImproperlyConfigured(f"{variable}={rate!r}: must be a rate like 600/min, or empty")
    return rate or None


SIGN_IN_RATE = _rate("THROTTLE_SIGN_IN", "10/min")

# For submissions. The address is that of the connection, or behind proxies that of the client.
ISOLATION_THROTTLE_RATES = {
    "user": _rate("THROTTLE_USER", "6000/min"),
    "address": _rate("THROTTLE_ADDRESS", "12000/min"),
}
REST_FRAMEWORK = {"NUM_PROXIES": proxies.count(env)}  # the API's views bring all else

REST_KNOX = {
    "TOKEN_TTL": timedelta(days=env.float("TOKEN_DAYS", default=30.0)),
    "AUTO_REFRESH": False,  # use does not extend a token's lifetime
    "USER_SERIALIZER": None,
}

SPECTACULAR_SETTINGS = {
    # Of `manage.py spectacular`
    "DEFAULT_GENERATOR_CLASS": "backends_app.api.schema.CachedGenerator",
}

_format, _level = logs.defaults(sys.argv, DEBUG)
LOG_FORMAT = env.str("LOG_FORMAT", default=_format)
LOG_LEVEL = env.str("LOG_LEVEL", default=_level)
if LOG_FORMAT not in logs.FORMATS:
    raise ImproperlyConfigured(f"LOG_FORMAT={LOG_FORMAT!r}: must be json or console")
if LOG_LEVEL not in logs.LEVELS:
    raise ImproperlyConfigured(f"LOG_LEVEL={LOG_LEVEL!r}: must be one of {', '.join(logs.LEVELS)}")
LOGGING = logs.configuration(LOG_FORMAT, LOG_LEVEL)

LOGIN_REDIRECT_URL = "/v1/"

# Three backends; their other options, routes and limits have the defaults of backends_app.conf.
ISOLATION_BACKENDS = {
    "isolate": {"BACKEND": "backends_app.backends.isolate.IsolateBackend", "OPTIONS": {}},
    "gvisor": {
        "BACKEND": "backends_app.backends.gvisor.GVisorBackend",
        "OPTIONS": {"engine": env.str("GVISOR_ENGINE", default="unix:///var/run/docker.sock")},
    },
    "microvm": {
        "BACKEND": "backends_app.backends.microvm.MicroVMBackend",
        "OPTIONS": {
            "folder": env.str("MICROVM_FOLDER", default="") or None,
            "accelerator": env.str("MICROVM_ACCELERATOR", default="kvm"),
        },
    },
}

ISOLATION_EXECUTOR: dict[str, Any]  # annotated here: Python 3.11.2 fails on it inside `match`
match env.str("EXECUTOR", default="local"):
    case "local":
        ISOLATION_EXECUTOR = {"BACKEND": "backends_app.executors.local.LocalExecutor"}
    case "celery":
        ISOLATION_EXECUTOR = {
            "BACKEND": "backends_app.executors.celery.CeleryExecutor",
            "OPTIONS": {"broker": env.str("BROKER_URL", default="redis://127.0.0.1:6379/0")},
        }
    case other:
        raise ImproperlyConfigured(f"EXECUTOR={other!r}: must be local or celery")

ISOLATION_RETENTION = {
    "source_days": env.float("SOURCE_DAYS", default=0.0),
    "outputs_days": env.float("OUTPUTS_DAYS", default=30.0),
    "records_days": env.float("RECORDS_DAYS", default=365.0),
}

ISOLATION_METRICS = {
    "access": env.str("METRICS_ACCESS", default="token"),
    "token": env.str("METRICS_TOKEN", default=""),
}
PROMETHEUS_LATENCY_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
ISOLATION_REQUIRED_BACKENDS = env.list("REQUIRED_BACKENDS", default=[])

if RUNTIME_DIR := env.str("RUNTIME_DIR", default=""):
    ISOLATION_RUNTIME_DIR = RUNTIME_DIR
