"""Authenticate by token or session, without reading the body where it is not needed."""

from knox.auth import TokenAuthentication as KnoxTokenAuthentication
from rest_framework.authentication import SessionAuthentication as DRFSessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request, is_form_media_type


class TokenAuthentication(KnoxTokenAuthentication):
    """Returns 401 for a header that is not UTF-8; knox would raise `UnicodeDecodeError`."""

    def authenticate_credentials(self, token):
        try:
            return super().authenticate_credentials(token)
        except UnicodeDecodeError:
            raise AuthenticationFailed("Invalid token.") from None


class SessionAuthentication(DRFSessionAuthentication):
    """Reads only form bodies to find a CSRF token; DRF would parse any body before throttling."""

    def enforce_csrf(self, request: Request) -> None:
        is_form = is_form_media_type(request.content_type)
        super().enforce_csrf(request if is_form else request._request)  # type: ignore[arg-type]
