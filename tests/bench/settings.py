"""The site's settings with the benchmark's URLs."""

from vulcan_site.settings import *  # noqa: F403

ROOT_URLCONF = "tests.bench.urls"
