"""System checks name what the project around the app lacks, with the remedy."""

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from backends_app.api.checks import PROBES, REQUIRED_APPS, check_project, require_apps


def test_the_check_of_the_project_is_registered():
    # Without backends, whose checks would start a process here.
    with override_settings(USE_TZ=False, ISOLATION_BACKENDS={}):
        assert "backends_app.E002" in [found.id for found in run_checks(tags=["isolation"])]


@pytest.mark.parametrize("app", [name for name in REQUIRED_APPS if "auth" not in name])
def test_a_missing_app_is_an_error_that_names_it_with_its_remedy(app: str):
    others = [name for name in django_settings.INSTALLED_APPS if name != app]
    with override_settings(INSTALLED_APPS=others):
        [message] = check_project(None)
        assert message.id == "backends_app.E001"
        assert message.level >= 40
        assert repr(app) in message.msg
        assert f"Add {app!r} to INSTALLED_APPS" in message.hint
        with pytest.raises(ImproperlyConfigured, match=app):
            require_apps()


def test_times_without_zones_are_an_error():
    with override_settings(USE_TZ=False):
        [message] = check_project(None)
    assert message.id == "backends_app.E002"
    assert "USE_TZ = True" in message.hint


@pytest.mark.parametrize(
    ("project", "id"),
    [
        ({"DATABASES": {}}, "W004"),
        ({"DATABASES": {"default": {"ENGINE": "django.db.backends.dummy"}}}, "W004"),
        ({"TEMPLATES": []}, "W005"),
        ({"MIDDLEWARE": ["django.middleware.security.SecurityMiddleware", PROBES]}, "W006"),
    ],
)
@pytest.mark.filterwarnings("ignore:Overriding setting DATABASES")
def test_a_doubtful_project_is_a_warning_with_its_remedy(project: dict, id: str):
    with override_settings(**project):
        [message] = check_project(None)
    assert message.id == f"backends_app.{id}"
    assert message.level == 30
    assert next(iter(project)) in message.hint


@pytest.mark.parametrize("middleware", [[], [PROBES, "django.middleware.common.CommonMiddleware"]])
def test_probes_may_come_first_or_not_at_all(middleware: list[str]):
    with override_settings(MIDDLEWARE=middleware):
        assert check_project(None) == []
