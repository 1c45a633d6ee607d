"""Backends as the API returns them."""

from rest_framework import serializers

from .routes import RouteSerializer


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


class BackendDetailSerializer(BackendInfoSerializer):
    """One backend with the routes that target it."""

    routes = RouteSerializer(many=True)
    changed_at = serializers.DateTimeField(help_text="When its health last changed.")
