"""Pages that take as long at the end of a long list as at its beginning."""

from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination

from ..exceptions import InvalidRequest


class WorkloadPagination(CursorPagination):
    """Newest first. A cursor is a place in the list, so nothing is shown twice or left out when
    others are added meanwhile.
    """

    ordering = ("-created_at", "-id")
    page_size = 20
    page_size_query_param = "page_size"
    max_page_size = 100

    def decode_cursor(self, request):
        try:
            return super().decode_cursor(request)
        except NotFound:
            raise InvalidRequest("cursor", "Take it from next or previous of a page.") from None
