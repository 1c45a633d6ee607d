"""The browsable API: DRF's pages, with links to where a person would go next."""

from typing import Any

from rest_framework.renderers import BrowsableAPIRenderer


class ExplorableAPIRenderer(BrowsableAPIRenderer):
    """Shows the links that a view offers by `links()` above its answer."""

    def get_context(self, data: Any, accepted_media_type: str | None, renderer_context: Any) -> Any:
        context = super().get_context(data, accepted_media_type, renderer_context)
        links = getattr(renderer_context["view"], "links", None)
        context["links"] = links() if links is not None else []
        return context
