"""Pages that take as long at the end of a long list as at its beginning."""

from datetime import UTC, datetime
from typing import Any

from rest_framework.exceptions import NotFound
from rest_framework.pagination import Cursor, CursorPagination

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
        """Return the place that the request names; DRF leaves what it holds to the database."""
        try:
            cursor: Cursor | None = super().decode_cursor(request)
            if cursor is not None and cursor.position is not None:
                moment = datetime.fromisoformat(str(cursor.position))
                if moment.tzinfo is None:
                    raise ValueError("a time without its zone")
                position: Any = str(moment.astimezone(UTC))
                cursor = cursor._replace(position=position)
        except (NotFound, ValueError, OverflowError):
            raise InvalidRequest("cursor", "Take it from next or previous of a page.") from None
        return cursor
