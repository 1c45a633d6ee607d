"""Who sends a request: by a token or a session, without reading more of it than is needed."""

from knox.auth import TokenAuthentication as KnoxTokenAuthentication
from rest_framework.authentication import SessionAuthentication as DRFSessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request, is_form_media_type


class TokenAuthentication(KnoxTokenAuthentication):
    """knox decodes the header as UTF-8 without a net."""

    def authenticate_credentials(self, token):
        try:
            return super().authenticate_credentials(token)
        except UnicodeDecodeError:
            raise AuthenticationFailed("Invalid token.") from None


class SessionAuthentication(DRFSessionAuthentication):
    """DRF's own parses any body, before the throttles, where it looks for a form's CSRF token."""

    def enforce_csrf(self, request: Request) -> None:
        is_form = is_form_media_type(request.content_type)
        super().enforce_csrf(request if is_form else request._request)  # type: ignore[arg-type]
