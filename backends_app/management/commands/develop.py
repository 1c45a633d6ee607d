"""`manage.py develop`: a development server with a user to try it with. `make run` ends here."""

import secrets
import signal
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.management.base import CommandParser
from django.core.management.commands import runserver
from knox.models import get_token_model

from ...executors import get_executor
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
    help = "Serve for development: makes the user `dev` with a token, then shows how to begin."
    default_port = "8000"

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.set_defaults(use_reloader=False)

    def inner_run(self, *args: Any, **options: Any) -> None:
        """SIGTERM is an end like CONTROL-C: what runs is waited for, and settled."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        super().inner_run(*args, **options)

    def on_bind(self, server_port: int) -> None:
        """The server listens: say what there is and what to paste."""
        user, password = self._user()
        self._revoke_tokens(user)
        _, token = get_token_model().objects.create(user=user)
        get_executor().ensure_started(wait_s=PROBE_TIMEOUT_S)
        host = f"[{self.addr}]" if self._raw_ipv6 else self.addr
        here = f"http://{host}:{server_port}"
        self.stdout.write(f"\nVulcan listens at {here}/ (stop it with CONTROL-C)\n")
        print_rich(self, {}, backend_table(registry.list()))
        if password:
            self.stdout.write(
                f"\nUser {USER} was made with password {password}: it is shown this once. "
                f"Log in at {here}/api-auth/login/ or {here}/admin/."
            )
        self.stdout.write(
            "\nThis start's token is in the next line; paste it to run a workload:\n\n"
        )
        self.stdout.write(CURL.format(host=host, port=server_port, token=token) + "\n")
        self.stdout.flush()  # nothing follows that would push it through a pipe

    def _user(self) -> tuple[AbstractBaseUser, str | None]:
        """The development user, and its password when it was made just now."""
        users = get_user_model()._default_manager
        if found := users.filter(username=USER).first():
            return found, None
        password = secrets.token_urlsafe(12)
        return users.create_superuser(username=USER, password=password), password

    def _revoke_tokens(self, user: AbstractBaseUser) -> None:
        """A token is stored hashed and cannot be shown again, so every start gets its own."""
        get_token_model().objects.filter(user=user).delete()
