"""The site as a Django app, which registers its system checks."""

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "vulcan_site"

    def ready(self) -> None:
        from django.core import checks

        from . import proxies

        checks.register(proxies.check, checks.Tags.security, deploy=True)
