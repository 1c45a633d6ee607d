"""Fields of a request: strict about JSON's types, lenient where a form has only strings."""

import base64
import binascii
import shlex
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.fields import empty, iter_options
from rest_framework.utils import html

from ...routing import MAX_ISOLATIONS, RUNTIME_ALIASES, RUNTIMES, parse_isolation
from ...utils import strict_json
from ...workloads import AUTO

MAX_COMMAND_WORDS = 64
MAX_WORD_CHARS = 4096


def _from_form(field: serializers.Field) -> bool:
    """Return whether the data come from a form, where all values are strings, unlike in JSON."""
    return html.is_html_input(getattr(field.root, "initial_data", None))


class TextField(serializers.CharField):
    """A string; rejects numbers and booleans."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class NumberField(serializers.FloatField):
    """A number; rejects strings and booleans, except in forms."""

    def to_internal_value(self, data: Any) -> float:
        if not _from_form(self) and (isinstance(data, bool) or not isinstance(data, int | float)):
            self.fail("invalid")
        return super().to_internal_value(data)


class WholeNumberField(serializers.IntegerField):
    """An integer; rejects strings, booleans and 2.0, except in forms."""

    def to_internal_value(self, data: Any) -> int:
        if not _from_form(self) and (isinstance(data, bool) or not isinstance(data, int)):
            self.fail("invalid")
        return super().to_internal_value(data)


class FlagField(serializers.BooleanField):
    """A boolean; rejects strings and numbers, except in forms."""

    def to_internal_value(self, data: Any) -> bool:
        if not _from_form(self) and not isinstance(data, bool):
            self.fail("invalid", input=data)
        return super().to_internal_value(data)


class RuntimeField(TextField):
    """A string that routing validates; a form offers the names, and an empty one is missing."""

    def iter_options(self) -> Any:
        """Return the options of the form's list."""
        return iter_options({name: name for name in (*RUNTIMES, *RUNTIME_ALIASES)})

    def get_value(self, dictionary: Any) -> Any:
        value = super().get_value(dictionary)
        return empty if value == "" and html.is_html_input(dictionary) else value


class CommandField(serializers.ListField):
    """A list of words; in a form, a line that is split as a shell does."""

    MAX_LINE_CHARS = MAX_COMMAND_WORDS * MAX_WORD_CHARS
    default_error_messages = {
        "unbalanced": "Has a quote without an end.",
        "too_long": f"Must be at most {MAX_LINE_CHARS:,} characters.",
    }

    def get_initial(self) -> Any:
        """Return what a new form shows."""
        return ""

    def get_value(self, dictionary: Any) -> Any:
        if html.is_html_input(dictionary) and self.field_name in dictionary:
            line = dictionary[self.field_name]
            return empty if isinstance(line, str) and not line.strip() else line
        return super().get_value(dictionary)

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, str) and _from_form(self):
            if len(data) > self.MAX_LINE_CHARS:
                self.fail("too_long")
            try:
                data = shlex.split(data)
            except ValueError:
                self.fail("unbalanced")
        elif not isinstance(data, list):  # an uploaded file
            self.fail("not_a_list", input_type=type(data).__name__)
        return super().to_internal_value(data)


@extend_schema_field(OpenApiTypes.BYTE)
class Base64Field(serializers.Field):
    """Bytes in standard base64."""

    default_error_messages = {"invalid": "Not valid base64 (RFC 4648, with padding)."}

    def to_internal_value(self, data: Any) -> bytes:
        if not isinstance(data, str):
            self.fail("invalid")
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            self.fail("invalid")


class AnyJSONField(serializers.JSONField):
    """Any JSON; in a form, the text of a JSON document."""

    def to_internal_value(self, data: Any) -> Any:
        if not _from_form(self):
            return data
        if not isinstance(data, str):  # an uploaded file
            self.fail("invalid")
        try:
            return strict_json.loads(data)
        except strict_json.InvalidJSON as error:
            raise ValidationError(f"Invalid JSON: {error}.") from error

    def get_value(self, dictionary: Any) -> Any:
        if html.is_html_input(dictionary):
            return dictionary.get(self.field_name) or empty
        return super().get_value(dictionary)


@extend_schema_field(
    {
        "oneOf": [
            {"type": "string", "minLength": 1, "maxLength": 63},
            {
                "type": "array",
                "items": {"type": "string", "minLength": 1, "maxLength": 63},
                "minItems": 1,
                "maxItems": MAX_ISOLATIONS,
                "uniqueItems": True,
            },
        ]
    }
)
class IsolationField(serializers.Field):
    """`auto`, a backend name, or a list of names; in a form, comma-separated names."""

    default_error_messages = {
        "invalid": f"Must be {AUTO}, a backend name or a list of backend names."
    }

    def to_internal_value(self, data: Any) -> str | list[str]:
        if isinstance(data, str):
            return parse_isolation(data) if _from_form(self) else data
        if isinstance(data, list) and all(isinstance(name, str) for name in data):
            return data
        raise ValidationError(self.error_messages["invalid"], code="invalid")

    def to_representation(self, value: Any) -> Any:
        return value if isinstance(value, str) else list(value)
