"""Create, list and revoke the tokens of the requesting user."""

import re

from django.db.models import QuerySet
from knox.models import AuthToken, get_token_model
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import NotFound
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from ..authentication import SessionAuthentication
from ..schema import errors, extend_schema
from ..serializers.tokens import NewTokenSerializer, TokenSerializer
from ..throttles import AddressThrottle, UserThrottle
from .base import SizeLimitedView


class OwnTokensView(SizeLimitedView):
    """Gives access to the user's own tokens only, for staff too; the admin has all tokens."""

    permission_classes = [IsAuthenticated]

    def own_tokens(self) -> "QuerySet[AuthToken]":
        return get_token_model().objects.filter(user=self.request.user).order_by("created")


class TokensView(OwnTokensView):
    """Your tokens. POST without a body creates one; its value is shown once, in that response."""

    name = "Tokens"
    throttle_classes = [UserThrottle, AddressThrottle]

    def get_authenticators(self) -> list[BaseAuthentication]:
        """Require a session to create a token: a stolen token must not outlive its expiry."""
        if self.request is not None and self.request.method == "POST":
            return [SessionAuthentication()]
        return super().get_authenticators()

    @extend_schema(
        operation_id="tokens_list",
        responses={200: TokenSerializer(many=True), **errors(401, 403, 406)},
    )
    def get(self, request: Request) -> Response:
        return Response(TokenSerializer(self.own_tokens(), many=True).data)

    @extend_schema(
        operation_id="tokens_create",
        request=None,
        responses={201: NewTokenSerializer, **errors(400, 401, 403, 406, 411, 413, 429)},
    )
    def post(self, request: Request) -> Response:
        instance, token = get_token_model().objects.create(user=request.user)
        return Response(
            {**TokenSerializer(instance).data, "token": token},
            status=201,
            headers={"Cache-Control": "no-store"},
        )

    @extend_schema(
        operation_id="tokens_revoke_all",
        responses={204: None, **errors(401, 403, 406, 411, 413)},
    )
    def delete(self, request: Request) -> Response:
        self.own_tokens().delete()
        return Response(status=204)


class TokenView(OwnTokensView):
    """One of your tokens, by its key: the beginning of its value."""

    name = "Token"

    @extend_schema(
        operation_id="tokens_revoke",
        responses={204: None, **errors(401, 403, 404, 406, 411, 413)},
    )
    def delete(self, request: Request, key: str) -> Response:
        if (
            not re.fullmatch(r"[!-~]{1,25}", key)
            or not self.own_tokens().filter(token_key=key).delete()[0]
        ):
            raise NotFound()
        return Response(status=204)
