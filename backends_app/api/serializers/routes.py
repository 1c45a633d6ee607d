"""The route table, and the resolution of a query."""

from typing import Any

from rest_framework import serializers

from ...workloads import AUTO
from .base import QuerySerializer
from .errors import EnvelopeSerializer
from .fields import IsolationField


class RouteSerializer(serializers.Serializer):
    """One row of the route table; without source format and runtime it is the default."""

    rule = serializers.CharField(source="route.rule")
    source_format = serializers.CharField(source="route.source_format", allow_null=True)
    runtime = serializers.CharField(source="route.runtime", allow_null=True)
    target = serializers.CharField(source="route.target")
    eligible = serializers.BooleanField(help_text="Whether the target can run it now.")
    reason = serializers.CharField()


class CandidateSerializer(serializers.Serializer):
    name = serializers.CharField()
    eligible = serializers.BooleanField()
    reason = serializers.CharField()


class AnyTextField(serializers.Field):
    """A value of a query, which is always a string; the registry judges it."""

    def to_internal_value(self, data: Any) -> Any:
        return data


class ResolveQuerySerializer(QuerySerializer):
    """The routing fields of a workload, as a query."""

    isolation = IsolationField(default=AUTO)
    runtime = AnyTextField(default=None)
    source_format = AnyTextField(default="code")


class ResolutionSerializer(serializers.Serializer):
    """The backend that would run a workload, and why."""

    isolation = IsolationField()
    runtime = serializers.CharField()
    source_format = serializers.CharField()
    backend = serializers.CharField(source="name")
    rule = serializers.CharField()
    candidates = CandidateSerializer(many=True)


class UnresolvedSerializer(EnvelopeSerializer):
    """The error that running such a workload would return, and every candidate with its reason.

    There are no candidates when the query is malformed.
    """

    candidates = CandidateSerializer(many=True, required=False)
