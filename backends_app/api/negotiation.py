"""Which answer suits a client: DRF's choice, also for an Accept header that cannot be read."""

from rest_framework.exceptions import NotAcceptable
from rest_framework.negotiation import DefaultContentNegotiation


class StrictNegotiation(DefaultContentNegotiation):
    """DRF reads the parameters of a media type without a net."""

    def select_renderer(self, request, renderers, format_suffix=None):
        try:
            return super().select_renderer(request, renderers, format_suffix)
        except (LookupError, ValueError):
            raise NotAcceptable("The Accept header cannot be read; leave it out.") from None
