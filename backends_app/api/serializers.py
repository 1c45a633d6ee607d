"""Serialize requests and responses: their format only, not their meaning."""

import base64
import binascii
import re
import shlex
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.fields import empty, iter_options
from rest_framework.utils import html

from ..conf import limits
from ..exceptions import InvalidRequest, comma_join
from ..routing import MAX_ISOLATIONS, RUNTIME_ALIASES, RUNTIMES
from ..utils import strict_json
from ..utils.text import short_repr
from ..workloads import AUTO, ENCODINGS, ExitReason, Status, WorkloadSpec

MAX_NAMED_ERRORS = 10
MAX_IMAGE_CHARS = 512
MAX_COMMAND_WORDS = 64
MAX_WORD_CHARS = 4096


# `resources.cpus` and `command[0]` belong to the field before the dot or bracket. DRF converts any
# index to an integer, which Python refuses for more than 4,300 digits.
_FORM_KEY = re.compile(r"(\w+)(?:\.\w+|\[[0-9]{1,3}\])?", re.ASCII)


def _from_form(field: serializers.Field) -> bool:
    """Return whether the data come from a form, where all values are strings, unlike in JSON."""
    return html.is_html_input(getattr(field.root, "initial_data", None))


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
                {
                    short_repr(key)[1:-1]: [ErrorDetail(detail, code=code)]
                    for key in keys[:MAX_NAMED_ERRORS]
                }
            )


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


def parse_isolation(text: str) -> str | list[str]:
    """Return a single name unchanged, comma-separated names as a list: `gvisor,microvm`."""
    return [name.strip() for name in text.split(",")] if "," in text else text


class ResourcesSerializer(StrictSerializer):
    """The resources that the workload may use; missing values are the operator's defaults."""

    cpus = NumberField(required=False, label="Processors", help_text="Processors, e.g. 0.5 or 2.")
    mem_mb = WholeNumberField(required=False, label="Memory (MB)", help_text="Memory in MB.")
    timeout_s = NumberField(
        required=False, label="Time limit (seconds)", help_text="Time limit in seconds."
    )


class WorkloadRequestSerializer(StrictSerializer):
    """One workload to run. Give exactly one of code, code_archive and image."""

    runtime = RuntimeField(
        required=False,
        allow_blank=True,
        trim_whitespace=False,
        initial="node",
        style={"base_template": "select.html"},
        help_text="node (or javascript, typescript), wasm, python, go, oci; optional for images.",
    )
    isolation = IsolationField(
        required=False,
        default=AUTO,
        initial=AUTO,
        help_text="auto, a backend name, or a list of names, most preferred first.",
    )
    code = TextField(
        required=False,
        trim_whitespace=False,
        initial="export default (input) => input",
        style={"base_template": "textarea.html", "rows": 10},
        help_text="The program's source code; for the runtime wasm, a module in base64.",
    )
    code_archive = Base64Field(
        required=False,
        label="Archive (base64)",
        help_text="A tar.gz with the program, in base64.",
        style={"rows": 3},
    )
    image = TextField(
        required=False, max_length=MAX_IMAGE_CHARS, help_text="An OCI image reference."
    )
    command = CommandField(
        child=TextField(max_length=MAX_WORD_CHARS, trim_whitespace=False, allow_blank=True),
        required=False,
        max_length=MAX_COMMAND_WORDS,
        style={"base_template": "input.html"},
        help_text="The command line as a list of words. It replaces an image's CMD, after its "
        "ENTRYPOINT; a WebAssembly module gets it as arguments, after its own name.",
    )
    input = AnyJSONField(
        required=False,
        default=None,
        allow_null=True,
        style={"base_template": "textarea.html", "rows": 3},
        help_text="The program's input: any JSON.",
    )
    resources = ResourcesSerializer(required=False)
    rerun_if_lost = FlagField(
        required=False,
        label="Rerun if lost",
        default=False,
        help_text="Run it a second time when the outcome of the first run is unknown.",
    )


def workload_spec(data: dict[str, Any]) -> WorkloadSpec:
    """Convert a validated request to a `WorkloadSpec`; raise `InvalidRequest`."""
    bounds = limits()
    return WorkloadSpec(
        runtime=data.get("runtime"),
        isolation=data["isolation"],
        code=data.get("code"),
        archive=data.get("code_archive"),
        image=data.get("image"),
        command=tuple(data.get("command", ())),
        input=data["input"],
        resources=bounds.resources(**data.get("resources", {})),
    )


class CapabilitiesSerializer(serializers.Serializer):
    name = serializers.CharField(help_text="Display name.")
    supported_runtimes = serializers.ListField(child=serializers.CharField())
    supported_isolations = serializers.ListField(child=serializers.CharField())
    supported_source_formats = serializers.ListField(child=serializers.CharField())
    max_concurrency = serializers.IntegerField(help_text="Maximum number of concurrent workloads.")


class BackendInfoSerializer(serializers.Serializer):
    """One backend; detected and healthy are null until the first probe."""

    name = serializers.CharField()
    capabilities = CapabilitiesSerializer()
    detected = serializers.BooleanField(allow_null=True)
    healthy = serializers.BooleanField(allow_null=True)
    health_description = serializers.CharField()
    attributes = serializers.DictField(child=serializers.CharField())


class RouteSerializer(serializers.Serializer):
    """One row of the route table; without source format and runtime it is the default."""

    rule = serializers.CharField()
    source_format = serializers.CharField(allow_null=True)
    runtime = serializers.CharField(allow_null=True)
    target = serializers.CharField()
    eligible = serializers.BooleanField(help_text="Whether the target can run it now.")
    reason = serializers.CharField()


class BackendDetailSerializer(BackendInfoSerializer):
    """One backend with the routes that target it."""

    routes = RouteSerializer(many=True)
    changed_at = serializers.DateTimeField(help_text="When its health last changed.")


class CandidateSerializer(serializers.Serializer):
    name = serializers.CharField()
    eligible = serializers.BooleanField()
    reason = serializers.CharField()


class ReasonSerializer(serializers.Serializer):
    """Why a workload was routed to its backend."""

    rule = serializers.CharField()
    candidates = CandidateSerializer(many=True)


class ResolutionSerializer(serializers.Serializer):
    """The backend that would run a workload, and why."""

    isolation = IsolationField()
    runtime = serializers.CharField()
    source_format = serializers.CharField()
    backend = serializers.CharField(source="name")
    rule = serializers.CharField()
    candidates = CandidateSerializer(many=True)


class EmptyAsNullField(serializers.CharField):
    """Text that is null while empty."""

    def get_attribute(self, instance: Any) -> Any:
        return super().get_attribute(instance) or None


class ReasonField(serializers.ChoiceField):
    """One of `ExitReason`; null before the end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(choices=[str(one) for one in ExitReason], allow_null=True, **options)

    def get_attribute(self, instance: Any) -> Any:
        return super().get_attribute(instance) or None


class WorkloadSerializer(serializers.Serializer):
    """A workload. All fields come from the host, except output, stdout, stderr and error.

    Results and measurements are empty or null until it has ended.
    """

    id = serializers.CharField()
    status = serializers.ChoiceField(choices=[str(one) for one in Status])
    runtime = serializers.CharField()
    isolation = IsolationField()
    isolation_used = serializers.CharField()
    resolution = ReasonSerializer(source="*")
    node = EmptyAsNullField(allow_null=True, help_text="The name of the host that runs it.")
    output = serializers.JSONField(allow_null=True)
    stdout = serializers.CharField()
    stderr = serializers.CharField()
    stdout_truncated = serializers.BooleanField()
    stderr_truncated = serializers.BooleanField()
    stdout_encoding = serializers.ChoiceField(
        choices=ENCODINGS, help_text="utf-8-lossy when some bytes were not valid UTF-8."
    )
    stderr_encoding = serializers.ChoiceField(choices=ENCODINGS)
    exit_code = serializers.IntegerField(allow_null=True)
    signal = EmptyAsNullField(allow_null=True)
    exit_reason = ReasonField()
    error = serializers.CharField()
    duration_ms = serializers.IntegerField(allow_null=True)
    compile_ms = serializers.IntegerField(
        allow_null=True,
        help_text="Time to compile the program; not part of its duration and time limit.",
    )
    cpu_time_ms = serializers.IntegerField(allow_null=True)
    memory_bytes = serializers.IntegerField(allow_null=True)
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)


class WorkloadSummarySerializer(serializers.Serializer):
    """A workload without the fields that can be large."""

    id = serializers.CharField()
    owner = EmptyAsNullField(
        source="owner.username",
        default=None,
        allow_null=True,
        help_text="The user who submitted it.",
    )
    status = serializers.ChoiceField(choices=[str(one) for one in Status])
    runtime = serializers.CharField()
    isolation = IsolationField()
    isolation_used = serializers.CharField()
    node = EmptyAsNullField(allow_null=True)
    exit_code = serializers.IntegerField(allow_null=True)
    signal = EmptyAsNullField(allow_null=True)
    exit_reason = ReasonField()
    error = serializers.CharField()
    duration_ms = serializers.IntegerField(allow_null=True)
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)


class WorkloadRowSerializer(WorkloadSummarySerializer):
    """A workload in a list, with its URL."""

    url = serializers.HyperlinkedIdentityField(
        view_name="workload", lookup_field="pk", lookup_url_kwarg="workload_id"
    )


class WorkloadPageSerializer(serializers.Serializer):
    """A page of workloads, newest first, with the URLs of the adjacent pages."""

    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    results = WorkloadRowSerializer(many=True)


class QuerySerializer(serializers.Serializer):
    """Query parameters: rejects unknown and repeated ones; `format` is DRF's own."""

    def to_internal_value(self, data: Any) -> Any:
        for key in data:
            if key not in (*self.fields, "format"):
                known = f"Unknown parameter. Known: {comma_join(self.fields)}."
                raise InvalidRequest(short_repr(key)[1:-1], known)
            if len(data.getlist(key)) > 1:
                raise InvalidRequest(key, "Given more than once.")
        return super().to_internal_value(data.dict())


class WorkloadQuerySerializer(QuerySerializer):
    """Filters for a list of workloads."""

    status = serializers.ChoiceField(choices=[str(one) for one in Status], required=False)
    runtime = serializers.CharField(required=False, max_length=63)
    isolation = serializers.CharField(
        required=False, max_length=63, help_text="The name of the backend that runs it."
    )
    created_after = serializers.DateTimeField(required=False, help_text="At this time or later.")
    created_before = serializers.DateTimeField(required=False, help_text="Before this time.")
    page_size = serializers.IntegerField(required=False, min_value=1, max_value=100)
    cursor = serializers.CharField(required=False, max_length=500)


class LogQuerySerializer(QuerySerializer):
    """The range of lines to return."""

    after = serializers.IntegerField(
        required=False,
        default=0,
        min_value=0,
        max_value=2**31 - 1,
        help_text="The last line received.",
    )
    limit = serializers.IntegerField(required=False, default=1000, min_value=1, max_value=10_000)


class LineSerializer(serializers.Serializer):
    number = serializers.IntegerField(help_text="Counts from 1 over both streams.")
    stream = serializers.CharField(help_text="stdout, stderr, or host for Vulcan's messages.")
    line = serializers.CharField(source="text")


class LogSerializer(serializers.Serializer):
    """Lines of a log; `next` is the `after` of the next page, null when there are no more now."""

    lines = LineSerializer(many=True)
    next = serializers.IntegerField(allow_null=True)
    complete = serializers.BooleanField(help_text="Whether the workload has ended.")


class NodeBackendSerializer(serializers.Serializer):
    name = serializers.CharField()
    detected = serializers.BooleanField(allow_null=True)
    healthy = serializers.BooleanField(allow_null=True)
    health_description = serializers.CharField()
    attributes = serializers.DictField(child=serializers.CharField())
    max_concurrency = serializers.IntegerField()
    running = serializers.IntegerField(help_text="Workloads running on it now.")


class NodeSerializer(serializers.Serializer):
    """A host that runs workloads, as it reports itself."""

    id = serializers.CharField()
    name = serializers.CharField()
    backends = NodeBackendSerializer(many=True)
    running = serializers.IntegerField()
    load = serializers.FloatField(help_text="The host's load average over one minute.")
    started_at = serializers.DateTimeField()
    seen_at = serializers.DateTimeField(help_text="Last heartbeat, by the node's clock.")


class ErrorSerializer(serializers.Serializer):
    code = serializers.CharField()
    detail = serializers.CharField()
    attr = serializers.CharField(allow_null=True, help_text="The field to change.")


class EnvelopeSerializer(serializers.Serializer):
    """The format of every error, on every path."""

    type = serializers.ChoiceField(choices=["validation_error", "client_error", "server_error"])
    errors = ErrorSerializer(many=True)  # type: ignore[assignment]  # the envelope's key


class UnresolvedSerializer(EnvelopeSerializer):
    """The error that running such a workload would return, and every candidate with its reason.

    There are no candidates when the query is malformed.
    """

    candidates = CandidateSerializer(many=True, required=False)


class TokenSerializer(serializers.Serializer):
    """A token without its value; `key` is the beginning of the value."""

    key = serializers.CharField(source="token_key", read_only=True)
    created_at = serializers.DateTimeField(source="created", read_only=True)
    expires_at = serializers.DateTimeField(source="expiry", read_only=True, allow_null=True)


class NewTokenSerializer(TokenSerializer):
    """A new token with its value, which is shown once."""

    token = serializers.CharField(read_only=True)
