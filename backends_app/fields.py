"""Columns for what strangers wrote: kept as bytes, since not every database has room for NUL."""

import json
from typing import Any

from django.db import models


class _BytesField(models.Field):  # type: ignore[type-arg]  # no generic while it runs
    """A value of Python's that is bytes in the database."""

    empty_strings_allowed = False

    def get_internal_type(self) -> str:
        return "BinaryField"

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        value = super().get_db_prep_value(value, connection, prepared)
        return None if value is None else connection.Database.Binary(value)


class UTF8Field(_BytesField):
    """Any text."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> str | None:
        return None if value is None else bytes(value).decode()

    def get_prep_value(self, value: Any) -> Any:
        return value.encode() if isinstance(value, str) else value


class AnyJSONField(_BytesField):
    """Any JSON, number for number as it was; null is no bytes at all."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return json.loads(bytes(value)) if value else None

    def get_prep_value(self, value: Any) -> Any:
        if value is None:
            return b""
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
