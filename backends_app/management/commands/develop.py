"""`manage.py develop`: a development server with a user and a token; used by `make run`."""

import secrets
import signal
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.management.base import CommandParser
from django.core.management.commands import runserver
from knox.models import get_token_model

from ...executors import start_executor
from ...health import PROBE_TIMEOUT_S
from ...registry import registry
from ..output import backend_table, print_rich

USER = "dev"
CURL = """\
curl -s http://{host}:{port}/v1/workloads \\
  -H 'Authorization: Token {token}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"runtime": "node", "code": "export default (x: {{a: number, b: number}}) => \
({{sum: x.a + x.b}})", "input": {{"a": 1, "b": 2}}}}'"""


class Command(runserver.Command):
    addr: str
    _raw_ipv6: bool
    help = "Run a development server with a user `dev`, and print a token and a first request."
    default_port = "8000"

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.set_defaults(use_reloader=False)

    def inner_run(self, *args: Any, **options: Any) -> None:
        """Treat SIGTERM like CONTROL-C: wait for running workloads and record their results."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        super().inner_run(*args, **options)

    def on_bind(self, server_port: int) -> None:
        """Print the backends, the credentials and a request to paste, once the server listens."""
        user, password = self._user()
        self._revoke_tokens(user)
        _, token = get_token_model().objects.create(user=user)
        start_executor(wait_s=PROBE_TIMEOUT_S)
        host = f"[{self.addr}]" if self._raw_ipv6 else self.addr
        base_url = f"http://{host}:{server_port}"
        self.stdout.write(f"\nVulcan listens at {base_url}/ (stop it with CONTROL-C)\n")
        print_rich(self, {}, backend_table(registry.list()))
        if password:
            self.stdout.write(
                f"\nCreated user {USER} with password {password}, which is shown only once. "
                f"Log in at {base_url}/api-auth/login/ or {base_url}/admin/."
            )
        self.stdout.write("\nPaste this to run a workload; its token is new at each start:\n\n")
        self.stdout.write(CURL.format(host=host, port=server_port, token=token) + "\n")
        self.stdout.flush()  # nothing follows, so a pipe would hold it back

    def _user(self) -> tuple[AbstractBaseUser, str | None]:
        """Return the development user, and its password if it was created just now."""
        users = get_user_model()._default_manager
        if found := users.filter(username=USER).first():
            return found, None
        password = secrets.token_urlsafe(12)
        return users.create_superuser(username=USER, password=password), password

    def _revoke_tokens(self, user: AbstractBaseUser) -> None:
        """Delete earlier tokens: stored tokens are hashed, so each start creates a new one."""
        get_token_model().objects.filter(user=user).delete()
