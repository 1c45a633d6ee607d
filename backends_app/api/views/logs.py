"""The log of a workload: as a stream while it runs, and its lines so far."""

import re
from contextlib import ExitStack
from itertools import islice
from typing import Any

from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from ...exceptions import InvalidRequest
from ...logs import store
from ...logs.follow import LogEvents, LogReader, log_hub
from ...utils.database import release_connection
from ...utils.shares import hold_stream
from ..renderers import EventStreamRenderer
from ..schema import errors, extend_schema
from ..serializers.logs import LogQuerySerializer, LogSerializer
from .workloads import OwnerScopedView


class LogHistoryView(OwnerScopedView):
    """The lines that a workload has printed so far."""

    name = "Log"

    @extend_schema(
        operation_id="workloads_log_history",
        parameters=[LogQuerySerializer],
        responses={200: LogSerializer, **errors(400, 401, 403, 404, 406)},
    )
    def get(self, request: Request, workload_id: str) -> Response:
        query = LogQuerySerializer(data=request.query_params)
        query.is_valid(raise_exception=True)
        after, limit = query.validated_data["after"], query.validated_data["limit"]
        workload = self.get_workload(workload_id)
        blocks = store.blocks_after(workload.pk, after)
        lines = list(islice(store.lines_after(blocks, after), limit + 1))
        more = len(lines) > limit
        log = {
            "lines": lines[:limit],
            "next": lines[limit - 1].number if more else None,
            "complete": workload.ended,
        }
        return Response(LogSerializer(log).data)


class LogsView(OwnerScopedView):
    """The log of a workload as Server-Sent Events, live while it runs.

    Each line is a `log` event whose id is the line number, so `Last-Event-ID` resumes after it. A
    `done` event marks the end of the log; when a stream ends without it, reconnect.
    """

    renderer_classes = [EventStreamRenderer, JSONRenderer]

    @extend_schema(
        operation_id="workloads_logs",
        parameters=[
            OpenApiParameter(
                "Last-Event-ID",
                {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
                OpenApiParameter.HEADER,
                description="The number of the last line received.",
            )
        ],
        responses={
            (200, "text/event-stream"): OpenApiTypes.STR,
            **errors(400, 401, 403, 404, 406, 429),
        },
    )
    def get(self, request: Request, workload_id: str) -> HttpResponseBase:
        after = request.headers.get("Last-Event-ID", "0")
        if not re.fullmatch(r"[0-9]{1,9}", after):
            raise InvalidRequest("Last-Event-ID", "Must be a line number.")
        workload = self.get_workload(workload_id)
        return EventStream(workload.pk, int(after), request.user.pk)

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        if isinstance(response, Response):  # an error, or OPTIONS
            request.accepted_renderer = JSONRenderer()
            request.accepted_media_type = "application/json"
        return super().finalize_response(request, response, *args, **kwargs)


class EventStream(StreamingHttpResponse):
    """Streams a log until its end or until the client disconnects; raises `TooManyWaiting`.

    A server with an event loop calls `poll` instead of iterating, which holds a thread.
    """

    def __init__(self, workload_id: str, after: int, user_id: int | None) -> None:
        with ExitStack() as stack:
            stack.enter_context(hold_stream(user_id))
            follower = stack.enter_context(log_hub.subscribe(workload_id))
            self._resources = stack.pop_all()
        release_connection()
        events = LogEvents(LogReader(follower, after))
        self.poll = events.poll
        super().__init__(
            events,
            content_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    def close(self) -> None:
        self._resources.close()
        super().close()
