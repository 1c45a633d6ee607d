"""The ASGI entry point: `vulcan_site.asgi`."""

import os

from django.core.asgi import get_asgi_application

from .utf8_requests import UTF8ASGIRequest

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "vulcan_site.settings")

application = get_asgi_application()
application.request_class = UTF8ASGIRequest
