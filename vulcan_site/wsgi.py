"""The WSGI entry point, for gunicorn: `vulcan_site.wsgi`."""

import os

from django.core.wsgi import get_wsgi_application

from .utf8_requests import UTF8WSGIRequest

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "vulcan_site.settings")

application = get_wsgi_application()
application.request_class = UTF8WSGIRequest
