"""Render responses as HTML pages and as event streams, besides plain JSON."""

import re
import secrets
from typing import Any

from django.utils.html import escape
from rest_framework.renderers import BaseRenderer, BrowsableAPIRenderer
from rest_framework.reverse import reverse
from rest_framework.settings import api_settings
from rest_framework.utils.urls import replace_query_param

MAX_PREVIEW_CHARS = 50_000
MAX_PREVIEW_TEXT_CHARS = 5_000
MAX_PREVIEW_ITEMS = 1_000
VALUE_CHARS = 8  # the minimum size counted for a value
OMITTED = "…"


class ExplorableAPIRenderer(BrowsableAPIRenderer):
    """Shows a preview of the response below the links that the view returns from `links()`.

    The output of programs can be large, and can look like anything. A page shows a bounded part of
    it, in which only the API's own URLs are links, and a link to the whole response.
    """

    template = "backends_app/api.html"
    _content = ""

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None
    ) -> str:
        """Render the page around a placeholder: DRF's template links everything like a URL."""
        self._placeholder = secrets.token_hex()
        page = super().render(data, accepted_media_type, renderer_context)
        return page.replace(self._placeholder, self._content)

    def get_context(self, data: Any, accepted_media_type: str | None, renderer_context: Any) -> Any:
        self._full_link: list[dict[str, str]] = []
        context = super().get_context(data, accepted_media_type, renderer_context)
        links = getattr(renderer_context["view"], "links", None)
        context["links"] = [*self._full_link, *(links() if links is not None else [])]
        if renderer_context["request"].method == "GET":
            # Above the list; the response to a form stands above the form, as DRF does it.
            context["submit_form"] = context["post_form"]
            context["submit_raw_form"] = context["raw_data_post_form"]
            context["post_form"] = context["raw_data_post_form"] = None
        # Inline styles for highlighted code, which our pages do not show.
        context["code_style"] = None
        return context

    def get_content(
        self, renderer: Any, data: Any, accepted_media_type: str | None, renderer_context: Any
    ) -> str:
        """Store the response, or its beginning, as HTML, and return the placeholder."""
        preview = _Preview()
        shown = preview.shorten(data)
        content = super().get_content(renderer, shown, accepted_media_type, renderer_context)
        if len(content) > MAX_PREVIEW_CHARS:
            content, preview.is_cut = content[:MAX_PREVIEW_CHARS] + OMITTED, True
        request = renderer_context["request"]
        if preview.is_cut:
            url = renderer_context["response"].get("Location", request.build_absolute_uri())
            url = replace_query_param(url, api_settings.URL_FORMAT_OVERRIDE, "json")
            self._full_link = [{"text": "full response as JSON", "url": url}]
        self._content = _with_own_links(escape(content), reverse("root", request=request))
        return self._placeholder

    def show_form_for_method(self, view: Any, method: str, request: Any, obj: Any) -> bool:
        """Hide the form for a rejected request: filling it in would read the rejected body."""
        status = view.response.status_code
        is_rejected = status > 400
        return not is_rejected and bool(super().show_form_for_method(view, method, request, obj))


class _Preview:
    """Shortens a response: each text and list in it, and the response as a whole."""

    def __init__(self) -> None:
        self._left = MAX_PREVIEW_CHARS
        self.is_cut = False

    def shorten(self, data: Any) -> Any:
        """Return the shortened data; set `is_cut` when something was omitted."""
        self._left -= VALUE_CHARS
        if isinstance(data, str):
            return self._shorten_text(data)
        if isinstance(data, dict):
            shown = {self._shorten_text(key): self.shorten(data[key]) for key in self._some(data)}
            return shown if len(shown) == len(data) else {**shown, OMITTED: OMITTED}
        if isinstance(data, list | tuple):
            listed = [self.shorten(value) for value in self._some(data)]
            return listed if len(listed) == len(data) else [*listed, OMITTED]
        return data

    def _some(self, values: Any) -> Any:
        for number, value in enumerate(values):
            if self._left <= 0 or number == MAX_PREVIEW_ITEMS:
                self.is_cut = True
                return
            yield value

    def _shorten_text(self, text: Any) -> Any:
        if not isinstance(text, str):
            return text
        size = max(0, min(MAX_PREVIEW_TEXT_CHARS, self._left))
        self._left -= min(len(text), size)
        if len(text) <= size:
            return text
        self.is_cut = True
        return text[:size] + OMITTED


def _with_own_links(html: str, root: str) -> str:
    """Turn strings in escaped JSON that are URLs of this API into links."""
    address = rf"(?<=&quot;)({re.escape(escape(root))}(?:[^\s&]|&amp;)*)(?=&quot;)"
    return re.sub(address, r'<a href="\1">\1</a>', html)


class EventStreamRenderer(BaseRenderer):
    """Stands for `text/event-stream` in content negotiation; streams are not rendered."""

    media_type = "text/event-stream"
    format = "event-stream"

    def render(self, data, accepted_media_type=None, renderer_context=None):
        raise NotImplementedError("event streams are not rendered")
