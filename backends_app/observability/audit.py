"""Log sign-ins, failed sign-ins, and the creation and revocation of tokens.

The rows of workloads and the log lines of `lifecycle` record who ran what, and where. Actions in
the admin are in the admin's own log.

The log lines come from signals and models of Django and knox, whatever triggered them. They have
the id and the address of the request, if there was one.
"""

import logging
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model, signals
from django.db.models.signals import post_delete, post_save
from django.utils.timezone import now

logger = logging.getLogger(__name__)


def register() -> None:
    """Connect the receivers; a second call changes nothing."""
    signals.user_logged_in.connect(_signed_in, dispatch_uid=__name__)
    signals.user_logged_out.connect(_signed_out, dispatch_uid=__name__)
    signals.user_login_failed.connect(_failed, dispatch_uid=__name__)
    if not apps.is_installed("knox"):  # a system check reports it
        return
    from knox.models import get_token_model

    tokens = get_token_model()
    post_save.connect(_token_made, sender=tokens, dispatch_uid=__name__)
    post_delete.connect(_token_revoked, sender=tokens, dispatch_uid=__name__)


def _signed_in(user: Any, **_: object) -> None:
    logger.info("signed in", extra={"user_id": user.pk})


def _signed_out(user: Any, **_: object) -> None:
    logger.info("signed out", extra={"user_id": getattr(user, "pk", None)})


def _failed(credentials: dict[str, Any], **_: object) -> None:
    """Log the id of the user, if one exists, but not the name: it may be a mistyped password."""
    users = get_user_model()
    name = credentials.get(users.USERNAME_FIELD)
    is_valid = isinstance(name, str) and "\0" not in name
    matches = users._default_manager.filter(**{users.USERNAME_FIELD: name}) if is_valid else None
    pk = matches.values_list("pk", flat=True).first() if matches is not None else None
    logger.warning("sign-in failed", extra={"user_id": pk})


def _token_made(instance: Any, created: bool, **_: object) -> None:
    if created:
        logger.info("token created", extra=_token_fields(instance))


def _token_revoked(instance: Any, **_: object) -> None:
    expired = instance.expiry is not None and instance.expiry <= now()
    logger.info("token expired" if expired else "token revoked", extra=_token_fields(instance))


def _token_fields(token: Any) -> dict[str, object]:
    """Return log fields of a token; `token_key` is its prefix, as in the admin, and no secret."""
    expires = None if token.expiry is None else token.expiry.isoformat()
    return {"owner_id": token.user_id, "token_key": token.token_key, "expires_at": expires}
