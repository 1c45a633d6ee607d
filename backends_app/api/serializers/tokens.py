"""Tokens, with their value only when they are new."""

from rest_framework import serializers


class TokenSerializer(serializers.Serializer):
    """A token without its value; `key` is the beginning of the value."""

    key = serializers.CharField(source="token_key", read_only=True)
    created_at = serializers.DateTimeField(source="created", read_only=True)
    expires_at = serializers.DateTimeField(source="expiry", read_only=True, allow_null=True)


class NewTokenSerializer(TokenSerializer):
    """A new token with its value, which is shown once."""

    token = serializers.CharField(read_only=True)
