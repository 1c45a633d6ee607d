"""What a browser may do with our answers: nothing that did not come from here as a file.

No script and no style stands inside a page. DRF's own pages have a few style attributes; exactly
these are allowed, by their hashes, which are taken from the very files.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

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


NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
PAGE = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        f"style-src-attr 'unsafe-hashes' {' '.join(_hashes())}",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
PERMISSIONS = ", ".join(
    f"{feature}=()"
    for feature in (
        *("accelerometer", "camera", "display-capture", "geolocation", "gyroscope"),
        *("magnetometer", "microphone", "midi", "payment", "usb"),
    )
)


class ContentPolicyMiddleware:
    """An answer that brings a policy of its own keeps it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        is_page = response.headers.get("Content-Type", "").startswith("text/html")
        response.headers.setdefault(HEADER, PAGE if is_page else NOTHING)
        response.headers.setdefault("Permissions-Policy", PERMISSIONS)
        response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        return response
