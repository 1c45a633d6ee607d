"""Paginate workloads by cursor: the last page of a long list is as fast as the first."""

from datetime import UTC, datetime
from typing import Any

from rest_framework.exceptions import NotFound
from rest_framework.pagination import Cursor, CursorPagination

from ..exceptions import InvalidRequest


class WorkloadPagination(CursorPagination):
    """Paginates newest first. A cursor is a position in the list, so no row is repeated or skipped
    when rows are added in the meantime.
    """

    ordering = ("-created_at", "-id")
    page_size = 20
    page_size_query_param = "page_size"
    max_page_size = 100

    def decode_cursor(self, request):
        """Return the request's cursor, validated: DRF passes its position to the database as is."""
        try:
            cursor: Cursor | None = super().decode_cursor(request)
            if cursor is not None and cursor.position is not None:
                time = datetime.fromisoformat(str(cursor.position))
                if time.tzinfo is None:
                    raise ValueError("a time without a time zone")
                position: Any = str(time.astimezone(UTC))
                cursor = cursor._replace(position=position)
        except (NotFound, ValueError, OverflowError):
            raise InvalidRequest(
                "cursor", "Invalid cursor; use the next or previous link of a page."
            ) from None
        return cursor
