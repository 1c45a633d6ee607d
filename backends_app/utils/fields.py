"""Model fields for untrusted text, stored as bytes: some databases cannot store NUL in text."""

import json
from typing import Any

from django.db import models


class _BytesField(models.Field):  # type: ignore[type-arg]  # not generic at run time
    """A Python value that is stored as bytes."""

    empty_strings_allowed = False

    def get_internal_type(self) -> str:
        return "BinaryField"

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        value = super().get_db_prep_value(value, connection, prepared)
        return None if value is None else connection.Database.Binary(value)


class UTF8Field(_BytesField):
    """Any text, stored as UTF-8."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> str | None:
        return None if value is None else bytes(value).decode()

    def get_prep_value(self, value: Any) -> Any:
        return value.encode() if isinstance(value, str) else value


class AnyJSONField(_BytesField):
    """Any JSON, with unchanged numbers; null is stored as zero bytes."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return json.loads(bytes(value)) if value else None

    def get_prep_value(self, value: Any) -> Any:
        if value is None:
            return b""
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
