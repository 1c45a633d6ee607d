"""The lines of a workload's log, and the query for a part of them."""

from rest_framework import serializers

from .base import QuerySerializer


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
