"""The hosts that run workloads, as they report themselves."""

from rest_framework import serializers


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
