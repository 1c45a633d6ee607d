"""Reject unknown and repeated keys in bodies and queries: a misspelt limit must not be ignored."""

import re
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.utils import html

from ...exceptions import InvalidRequest, comma_join
from ...utils.text import one_line

MAX_NAMED_ERRORS = 10


# `resources.cpus` and `command[0]` belong to the field before the dot or bracket. DRF converts any
# index to an integer, which Python refuses for more than 4,300 digits.
_FORM_KEY = re.compile(r"(\w+)(?:\.\w+|\[[0-9]{1,3}\])?", re.ASCII)


class StrictSerializer(serializers.Serializer):
    """Rejects unknown keys, and duplicate keys in forms: a misspelt limit must not be ignored. The
    JSON parser has already rejected duplicate keys.
    """

    FORM_FIELDS = frozenset({"csrfmiddlewaretoken", "_content", "_content_type", "_method"})

    def to_internal_value(self, data: Any) -> Any:
        if html.is_html_input(data):
            known = {*self.fields, *self.FORM_FIELDS}
            matches = {key: _FORM_KEY.fullmatch(key) for key in data}
            self._refuse(
                "unknown",
                [k for k, match in matches.items() if match is None or match[1] not in known],
            )
            self._refuse("duplicate", [key for key in data if len(data.getlist(key)) > 1])
        elif isinstance(data, dict):
            self._refuse("unknown", [key for key in data if key not in self.fields])
        return super().to_internal_value(data)

    def _refuse(self, code: str, keys: list[str]) -> None:
        detail = {
            "unknown": f"Unknown field. Known fields: {comma_join(self.fields)}.",
            "duplicate": "Given more than once.",
        }[code]
        if keys:
            raise ValidationError(
                {one_line(key): [ErrorDetail(detail, code=code)] for key in keys[:MAX_NAMED_ERRORS]}
            )


class QuerySerializer(serializers.Serializer):
    """Query parameters: rejects unknown and repeated ones; `format` is DRF's own."""

    def to_internal_value(self, data: Any) -> Any:
        for key in data:
            if key not in (*self.fields, "format"):
                known = f"Unknown parameter. Known: {comma_join(self.fields)}."
                raise InvalidRequest(one_line(key), known)
            if len(data.getlist(key)) > 1:
                raise InvalidRequest(key, "Given more than once.")
        return super().to_internal_value(data.dict())
