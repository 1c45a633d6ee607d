"""Workloads as the API returns them, and the filters of their list."""

from typing import Any

from rest_framework import serializers

from ...workloads import ENCODINGS, ExitReason, Status
from .base import QuerySerializer
from .fields import IsolationField
from .routes import CandidateSerializer


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


class ReasonSerializer(serializers.Serializer):
    """Why a workload was routed to its backend."""

    rule = serializers.CharField()
    candidates = CandidateSerializer(many=True)


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
