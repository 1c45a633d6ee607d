"""What answers look like beside plain JSON: pages for people, and streams of events."""

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
VALUE_CHARS = 8  # what a value counts at least
OMITTED = "…"


class ExplorableAPIRenderer(BrowsableAPIRenderer):
    """Shows the links that a view offers by `links()` above its answer, and the answer in part.

    What programs printed can be large, and can look like anything. A page holds a bounded part of
    it, in which nothing is a link but the API's own addresses, and says where all of it is.
    """

    _content = ""

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None
    ) -> str:
        """Render the page around a stand-in: DRF's template makes links of whatever looks so."""
        self._stand_in = secrets.token_hex()
        page = super().render(data, accepted_media_type, renderer_context)
        return page.replace(self._stand_in, self._content)

    def get_context(self, data: Any, accepted_media_type: str | None, renderer_context: Any) -> Any:
        self._whole: list[dict[str, str]] = []
        context = super().get_context(data, accepted_media_type, renderer_context)
        links = getattr(renderer_context["view"], "links", None)
        context["links"] = [*self._whole, *(links() if links is not None else [])]
        context["code_style"] = None  # a style inside the page, for what no page of ours shows
        return context

    def get_content(
        self, renderer: Any, data: Any, accepted_media_type: str | None, renderer_context: Any
    ) -> str:
        """Keep the answer, or its beginning, as HTML, and return what stands for it."""
        preview = _Preview()
        shown = preview.shorten(data)
        content = super().get_content(renderer, shown, accepted_media_type, renderer_context)
        if len(content) > MAX_PREVIEW_CHARS:
            content, preview.is_cut = content[:MAX_PREVIEW_CHARS] + OMITTED, True
        request = renderer_context["request"]
        if preview.is_cut:
            url = renderer_context["response"].get("Location", request.build_absolute_uri())
            url = replace_query_param(url, api_settings.URL_FORMAT_OVERRIDE, "json")
            self._whole = [{"text": "the whole answer, as JSON", "url": url}]
        self._content = _with_own_links(escape(content), reverse("root", request=request))
        return self._stand_in

    def show_form_for_method(self, view: Any, method: str, request: Any, obj: Any) -> bool:
        """Offer no form beside a refusal: what was refused unread would be read to fill it in."""
        status = view.response.status_code
        refused = status > 400
        return not refused and bool(super().show_form_for_method(view, method, request, obj))


class _Preview:
    """The beginning of an answer: of each text and list in it, and of the whole."""

    def __init__(self) -> None:
        self._left = MAX_PREVIEW_CHARS
        self.is_cut = False

    def shorten(self, data: Any) -> Any:
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
    """Make links of the strings in escaped JSON that are addresses of this API."""
    address = rf"(?<=&quot;)({re.escape(escape(root))}(?:[^\s&]|&amp;)*)(?=&quot;)"
    return re.sub(address, r'<a href="\1">\1</a>', html)


class EventStreamRenderer(BaseRenderer):
    """Stands for `text/event-stream` when it is found out what a client takes."""

    media_type = "text/event-stream"
    format = "event-stream"

    def render(self, data, accepted_media_type=None, renderer_context=None):
        raise NotImplementedError("such an answer streams")
