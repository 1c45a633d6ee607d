"""Content Security Policy: browsers load scripts and styles only as files from this site.

Pages have no inline scripts or styles. DRF's pages have a few style attributes; exactly these are
allowed, by hashes computed from DRF's template files.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import rest_framework
from django.http import HttpRequest, HttpResponse

HEADER = "Content-Security-Policy"
TEMPLATES = Path(rest_framework.__file__).parent / "templates" / "rest_framework"
PAGES = ("base.html", "login_base.html", *(f"horizontal/{n}fieldset.html" for n in ("", "list_")))


def _hashes() -> Iterator[str]:
    styles = {
        style
        for page in PAGES
        for style in re.findall(r'style="([^"{]*)"', (TEMPLATES / page).read_text())
    }
    for style in sorted(styles):
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        yield f"'sha256-{digest}'"


DATA_POLICY = {"default-src": "'none'", "frame-ancestors": "'none'"}
PAGE_POLICY = {
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
    """Sets the policy headers: of pages, or of other responses."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response
        self._data_header, self._page_header = _header(DATA_POLICY), _header(PAGE_POLICY)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        is_page = response.headers.get("Content-Type", "").startswith("text/html")
        response.headers[HEADER] = self._page_header if is_page else self._data_header
        response.headers["Permissions-Policy"] = PERMISSIONS
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response
