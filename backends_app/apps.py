"""Configure the Django app: fill the registry and connect receivers at start-up."""

from django.apps import AppConfig
from django.core.signals import setting_changed


class BackendsConfig(AppConfig):
    """Only imports and registers: opens no database or socket, starts no thread or process."""

    name = "backends_app"
    verbose_name = "Isolation backends"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks, conf, executors
        from .api import checks as api_checks
        from .observability import audit, metrics

        audit.register()
        checks.register()
        api_checks.register()
        conf.populate()
        executors.get_executor()
        metrics.subscribe()
        setting_changed.connect(conf.reload, dispatch_uid="backends_app.conf.reload")
        setting_changed.connect(executors.reload, dispatch_uid="backends_app.executors.reload")
