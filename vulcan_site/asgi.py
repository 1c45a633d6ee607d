"""The ASGI entry point: `vulcan_site.asgi`."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "vulcan_site.settings")

application = get_asgi_application()
