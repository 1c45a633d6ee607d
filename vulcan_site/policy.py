"""What a browser may do with our answers: nothing that did not come from here as a file.

No script and no style stands inside a page. DRF's own pages have a few style attributes; exactly
these are allowed, by their hashes, which are taken from the very files.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import rest_framework
from django.http import HttpRequest, HttpResponse

HEADER = "Content-Security-Policy"
TEMPLATES = Path(rest_framework.__file__).parent / "templates" / "rest_framework"
PAGES = ("base.html", "login_base.html", *(f"horizontal/{n}fieldset.html" for n in ("", "list_")))


def _hashes() -> Iterator[str]:
    found = {
        style
        for page in PAGES
        for style in re.findall(r'style="([^"{]*)"', (TEMPLATES / page).read_text())
    }
    for style in sorted(found):
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        yield f"'sha256-{digest}'"


NOTHING = {"default-src": "'none'", "frame-ancestors": "'none'"}
PAGE = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "style-src-attr": f"'unsafe-hashes' {' '.join(_hashes())}",
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}
PERMISSIONS = ", ".join(
    f"{feature}=()"
    for feature in (
        *("accelerometer", "camera", "display-capture", "geolocation", "gyroscope"),
        *("magnetometer", "microphone", "midi", "payment", "usb"),
    )
)


def _header(policy: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {sources}" for name, sources in policy.items())


class ContentPolicyMiddleware:
    """A view of DRF's kind may say by `content_policy` what its page needs besides."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response
        self._of_data, self._of_pages = _header(NOTHING), _header(PAGE)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        policy = self._of_data
        if response.headers.get("Content-Type", "").startswith("text/html"):
            more = getattr(request, "content_policy", None)
            policy = self._of_pages if more is None else _header({**PAGE, **more})
        response.headers[HEADER] = policy
        response.headers["Permissions-Policy"] = PERMISSIONS
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponse], args: Any, kwargs: Any
    ) -> None:
        more = getattr(getattr(view, "cls", None), "content_policy", None)
        request.content_policy = more  # type: ignore[attr-defined]
