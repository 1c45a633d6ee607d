"""The app as a library: a wheel, installed into another project."""

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import deno
import pytest

from tests.support.programs import PATIENCE_S, ROOT, environment, running, tracked_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel with the installed build back end, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip(
        *("wheel", "--no-index", "--no-deps", "--no-build-isolation"),
        *("--check-build-dependencies", "--wheel-dir", str(folder), str(ROOT)),
    )
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory) -> str:
    """Install the wheel into a new environment, and return that environment's Python.

    The dependencies are those of the tests' own environment, added to its path; Deno is a program.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = f"{folder}/bin/python"
    pip("--python", python, "install", "--no-index", "--no-deps", "--no-compile", str(wheel))
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "bin" / "deno").symlink_to(deno.find_deno_bin())
    return python


def pip(*arguments: str) -> None:
    """Run pip without its settings and the network."""
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run(*command: str, cwd: Path, **extra: str) -> str:
    """Run a program to its end and return its output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(cwd, **extra),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def block(page: str, containing: str) -> str:
    """Return the only block of code of a page of docs/ that contains a text."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    [found] = [block for block in blocks if containing in block]
    return found


def test_the_wheel_has_the_app_with_all_of_its_files_and_nothing_else(wheel: Path):
    app = {name for name in tracked_files() if name.startswith("backends_app/")}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert {archive.read(name) for name in app} == {(ROOT / name).read_bytes() for name in app}
    assert packed == app
    for part in ("templates/", "static/", "migrations/", "backends/microvm/guest/"):
        assert any(name.startswith(f"backends_app/{part}") for name in packed)
    assert {"backends_app/sandbox/launcher.py", "backends_app/backends/isolate/wasi.js"} <= packed


def test_the_wheel_requires_the_packages_of_the_app_and_those_of_each_extra(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    extras = PROJECT["optional-dependencies"]
    assert {"isolate", "gvisor", "microvm", "celery", "site"} == {*extras}
    assert {*metadata.get_all("Provides-Extra")} == {*extras}
    required = [line.replace(" ", "") for line in metadata.get_all("Requires-Dist")]
    assert {*required} == {
        *PROJECT["dependencies"],
        *(f'{one};extra=="{extra}"' for extra, wanted in extras.items() for one in wanted),
    }


APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "rest_framework",
    "knox",
    "backends_app",
]
PROBES = """
import sys
sys.modules.update(dict.fromkeys({hidden!r}))  # an import of None is an ImportError
import django
from django.conf import settings
settings.configure(INSTALLED_APPS={apps!r})
django.setup()
from backends_app.registry import registry
for name in ("isolate", "gvisor"):
    health = registry.get(name).backend.probe()
    print(name, health.state, health.description, sep=": ")
"""


def test_backends_without_their_extras_are_undetected_with_instructions(tmp_path: Path):
    hidden = ["deno", "docker", "requests", "celery", "environ", "whitenoise", "psycopg"]
    code = PROBES.format(hidden=hidden, apps=APPS)
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert printed.splitlines() == [
        "isolate: undetected: Deno is not installed; install it with: pip install deno",
        "gvisor: undetected: its SDK is not installed; install it with: pip install docker",
    ]


def test_a_fresh_project_runs_workloads_as_documented(python: str, tmp_path: Path):
    run(python, "-m", "django", "startproject", "mysite", cwd=tmp_path, DJANGO_SETTINGS_MODULE="")
    project = tmp_path / "mysite"
    settings = block("embedding.md", "INSTALLED_APPS +=")
    urls = block("embedding.md", "urlpatterns +=")
    lines = [line for line in (settings + urls).splitlines() if line]
    assert len(lines) <= 10
    for file, code in (("settings.py", settings), ("urls.py", urls)):
        with (project / "mysite" / file).open("a") as added:
            added.write(code)
    own = {"DJANGO_SETTINGS_MODULE": "mysite.settings"}
    run(python, "manage.py", "check", "--fail-level", "WARNING", cwd=project, **own)
    run(python, "manage.py", "migrate", "--verbosity", "0", cwd=project, **own)

    code = "import backends_app; print(backends_app.__file__)"
    installed = run(python, "-c", code, cwd=project, **own)
    assert installed.startswith(str(Path(python).parent.parent))

    code = "import django; django.setup()\n" + block("embedding.md", "services.run(")
    assert run(python, "-c", code, cwd=project, **own).split() == ["completed", "2"]

    server = ["manage.py", "develop", "127.0.0.1:0"]
    ready = r"(-d '.*'$)"
    with running(server, ready, tmp_path, python=python, cwd=project, **own) as (body, printed):
        base = re.search(r"curl -s (http://127\.0\.0\.1:\d+)/", printed)[1]
        token = re.search(r"Authorization: (Token \w+)", printed)[1]
        request = urllib.request.Request(
            f"{base}/v1/workloads",
            body.removeprefix("-d '").removesuffix("'").encode(),
            {"Authorization": token, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            workload = json.load(answer)
        assert (workload["output"], workload["isolation_used"]) == ({"sum": 3}, "isolate")
        for path in ("", "docs", "schema?format=json", f"workloads/{workload['id']}"):
            headers = {"Authorization": token, "Accept": "*/*" if "?" in path else "text/html"}
            page = urllib.request.Request(f"{base}/v1/{path}", headers=headers)
            with urllib.request.urlopen(page, timeout=PATIENCE_S) as answer:
                assert "Vulcan" in answer.read().decode()


OWN_SETTINGS = """
SECRET_KEY, ROOT_URLCONF, STATIC_URL, USE_TZ = "of a test", "own_urls", "static/", True
ALLOWED_HOSTS = ["*"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
INSTALLED_APPS += ["django.contrib.staticfiles"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.AllowAny"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.StaticHTMLRenderer"],
    "DEFAULT_THROTTLE_CLASSES": ["rest_framework.throttling.AnonRateThrottle"],
    "DEFAULT_THROTTLE_RATES": {"anon": "1/day"},
    "DEFAULT_VERSIONING_CLASS": None,
    "EXCEPTION_HANDLER": "rest_framework.views.exception_handler",
}
DRF_STANDARDIZED_ERRORS = {
    "EXCEPTION_HANDLER_CLASS": "nowhere.Handler", "EXCEPTION_FORMATTER_CLASS": "nowhere.Formatter"
}
SPECTACULAR_SETTINGS = {"TITLE": "Theirs", "SCHEMA_PATH_PREFIX": "/theirs"}
"""
OWN_URLS = """
from django.urls import path
from rest_framework.response import Response
from rest_framework.views import APIView

class Theirs(APIView):
    def get(self, request):
        return Response("theirs")

urlpatterns = [path("theirs", Theirs.as_view())]
"""
OWN_PROJECT = """
import json, django
django.setup()
from django.core.management import call_command
from django.test import Client
call_command("check", verbosity=0)
call_command("migrate", verbosity=0)
client = Client()
answers = [client.get(f"/v1/{path}") for path in ("backends", "nope", "schema?format=json", "docs")]
answers.append(client.post("/v1/workloads", "{}", content_type="application/json"))
answers.append(client.get("/theirs"))
document = answers[2].json()
print(json.dumps({
    "statuses": [answer.status_code for answer in answers],
    "unknown": answers[1].json(),
    "theirs": answers[5].content.decode(),
    "title": document["info"]["title"],
    "paths": sorted(document["paths"]),
}))
"""


def test_the_api_ignores_the_projects_settings_of_its_own_api(tmp_path: Path, client):
    settings = OWN_SETTINGS + block("embedding.md", "INSTALLED_APPS +=")
    (tmp_path / "own_settings.py").write_text(settings)
    (tmp_path / "own_urls.py").write_text(OWN_URLS + block("embedding.md", "urlpatterns +="))
    own = {"DJANGO_SETTINGS_MODULE": "own_settings", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    printed = run(sys.executable, "-c", OWN_PROJECT, cwd=tmp_path, **own)
    found = json.loads(printed.splitlines()[-1])
    assert found["statuses"] == [200, 404, 200, 200, 401, 200]
    assert found["unknown"]["errors"][0]["code"] == "not_found"
    assert found["theirs"] == "theirs"
    assert found["title"] == "Vulcan"
    assert found["paths"] == sorted(client.get("/v1/schema?format=json").json()["paths"])


THIRD_PARTY = """
import django
from django.conf import settings
settings.configure(**{settings!r})
django.setup()
from backends_app.execution import services
from backends_app.registry import registry
from backends_app.workloads import WorkloadSpec
spec = WorkloadSpec(runtime="shout", code="hello", isolation="shouting")
print(services.run(spec).result.output, *registry)
"""


@pytest.mark.parametrize("apps", [["backends_app", "shouting"], ["shouting", "backends_app"]])
def test_a_package_brings_a_backend_by_its_own_ready(tmp_path: Path, apps: list[str]):
    shouting_package(tmp_path)
    code = THIRD_PARTY.format(settings={"INSTALLED_APPS": apps})
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert printed.split() == ["HELLO", "gvisor", "isolate", "microvm", "shouting"]


def test_a_package_brings_a_backend_that_the_settings_name(tmp_path: Path):
    shouting_package(tmp_path)
    settings: dict = {"INSTALLED_APPS": ["backends_app"]}
    exec(block("backends/writing.md", "ISOLATION_BACKENDS ="), settings)
    del settings["__builtins__"]
    code = THIRD_PARTY.format(settings=settings)
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert printed.split() == ["HELLO", "shouting"]


def shouting_package(folder: Path) -> None:
    """Write a package outside of this project, of the examples of README and docs/."""
    package = folder / "shouting"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "apps.py").write_text(block("backends/writing.md", "AppConfig"))
    (package / "backend.py").write_text(block("../README.md", "class ShoutingBackend"))
