"""The site's settings with the URLs of the benchmark."""

from vulcan_site.settings import *  # noqa: F403

ROOT_URLCONF = "tools.bench.urls"
