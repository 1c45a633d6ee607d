"""What answers look like beside plain JSON: pages for people, and streams of events."""

from typing import Any

from rest_framework.renderers import BaseRenderer, BrowsableAPIRenderer


class ExplorableAPIRenderer(BrowsableAPIRenderer):
    """Shows the links that a view offers by `links()` above its answer."""

    def get_context(self, data: Any, accepted_media_type: str | None, renderer_context: Any) -> Any:
        context = super().get_context(data, accepted_media_type, renderer_context)
        links = getattr(renderer_context["view"], "links", None)
        context["links"] = links() if links is not None else []
        context["code_style"] = None  # a style inside the page, for what no page of ours shows
        return context


class EventStreamRenderer(BaseRenderer):
    """Stands for `text/event-stream` when it is found out what a client takes."""

    media_type = "text/event-stream"
    format = "event-stream"

    def render(self, data, accepted_media_type=None, renderer_context=None):
        raise NotImplementedError("such an answer streams")
