"""The audit trail of people: who signed in or failed to, and whose tokens were made and revoked.

Who ran what, and where, stands in the rows of the workloads, and in the lines that `lifecycle`
logs; what was done in the admin stands in the admin's own log.

The lines come from Django's and knox's own doings, however these were brought about; the request's
id and address are on them where a request did it.
"""

import logging
from typing import Any

from django.contrib.auth import get_user_model, signals
from django.db.models.signals import post_delete, post_save
from django.utils.timezone import now
from knox.models import get_token_model

logger = logging.getLogger(__name__)


def register() -> None:
    """Listen; a second call changes nothing."""
    signals.user_logged_in.connect(_signed_in, dispatch_uid="backends_app.audit")
    signals.user_logged_out.connect(_signed_out, dispatch_uid="backends_app.audit")
    signals.user_login_failed.connect(_failed, dispatch_uid="backends_app.audit")
    tokens = get_token_model()
    post_save.connect(_token_made, sender=tokens, dispatch_uid="backends_app.audit")
    post_delete.connect(_token_revoked, sender=tokens, dispatch_uid="backends_app.audit")


def _signed_in(user: Any, **_: object) -> None:
    logger.info("signed in", extra={"user_id": user.pk})


def _signed_out(user: Any, **_: object) -> None:
    logger.info("signed out", extra={"user_id": getattr(user, "pk", None)})


def _failed(credentials: dict[str, Any], **_: object) -> None:
    """Says which user it was about, if there is one; a name that is none may be a password."""
    users = get_user_model()
    name = credentials.get(users.USERNAME_FIELD)
    known = isinstance(name, str) and "\0" not in name
    found = users._default_manager.filter(**{users.USERNAME_FIELD: name}) if known else None
    pk = found.values_list("pk", flat=True).first() if found is not None else None
    logger.warning("sign-in failed", extra={"user_id": pk})


def _token_made(instance: Any, created: bool, **_: object) -> None:
    if created:
        logger.info("token made", extra=_about(instance))


def _token_revoked(instance: Any, **_: object) -> None:
    expired = instance.expiry is not None and instance.expiry <= now()
    logger.info("token expired" if expired else "token revoked", extra=_about(instance))


def _about(token: Any) -> dict[str, object]:
    """Its key is the beginning by which the admin shows it, and opens nothing."""
    expires = None if token.expiry is None else token.expiry.isoformat()
    return {"owner_id": token.user_id, "token_key": token.token_key, "expires_at": expires}
