"""The views of the API and its root.

Every view takes its registry as an argument of `as_view`, so that a test or another project can
pass its own.
"""

import re
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, fields
from itertools import islice
from typing import Any, ClassVar

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_conditional_response
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
)
from drf_spectacular.views import (
    SpectacularAPIView,
    SpectacularSwaggerSplitView,
)
from rest_framework.exceptions import NotFound
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.status import HTTP_202_ACCEPTED
from rest_framework.views import APIView
from structlog.contextvars import bind_contextvars

from .. import signals
from ..exceptions import (
    BackendNotRegistered,
    InvalidRequest,
    TooManyWaiting,
    comma_join,
    short_repr,
)
from ..execution import lifecycle
from ..execution.lifecycle import Submission
from ..executors import get_executor
from ..executors.base import Executor
from ..logs import store
from ..logs.follow import log_hub, sse_events
from ..models import Workload, WorkloadQuerySet, is_workload_id
from ..registry import Registry, Snapshot, registry
from ..routing import RUNTIMES, Route, check_eligibility, describe_eligibility
from ..utils.database import release_connection
from ..utils.thread_shares import thread_shares
from ..workloads import AUTO, SOURCE_FORMATS, Status
from .bodies import body_memory
from .errors import RETRY_CAPACITY_S
from .pagination import WorkloadPagination
from .parsers import check_body_size, check_content_type, reserve_memory
from .renderers import EventStreamRenderer
from .representation import backend_list
from .schema import DESCRIPTIONS, CachedGenerator, errors
from .serializers import (
    BackendDetailSerializer,
    BackendInfoSerializer,
    CandidateSerializer,
    LogQuerySerializer,
    LogSerializer,
    NodeSerializer,
    ResolutionSerializer,
    RouteSerializer,
    UnresolvedSerializer,
    WorkloadPageSerializer,
    WorkloadQuerySerializer,
    WorkloadRequestSerializer,
    WorkloadRowSerializer,
    WorkloadSerializer,
    parse_isolation,
    workload_spec,
)
from .throttles import AddressThrottle, UserThrottle

Link = dict[str, str]
LARGE_BODY_BYTES = 32 * 1024  # the server reads smaller bodies completely before the view runs
FILTERS = {
    "status": "status",
    "runtime": "runtime",
    "isolation": "isolation_used",
    "created_after": "created_at__gte",
    "created_before": "created_at__lt",
}
IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
    OpenApiParameter.HEADER,
    description="A repeated request with the same key returns the same workload.",
)
TYPESCRIPT = OpenApiExample(
    "TypeScript",
    request_only=True,
    value={
        "runtime": "node",
        "code": "export default (x: { a: number; b: number }) => ({ sum: x.a + x.b })",
        "input": {"a": 1, "b": 2},
    },
)


class SizeLimitedView(APIView):
    """Rejects requests by size and content type before anything reads the body.

    These cheap checks come before authentication and throttling in DRF's `initial`. A middleware
    has already rejected a charset.
    """

    reads_body: ClassVar[bool] = False
    """True in views whose POST has a body in one of the types of `parser_classes`."""

    reserved: tuple[object, int] = (None, 0)
    """The user and the reserved bytes of `body_memory`, released after the response is sent."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            response = super().dispatch(request, *args, **kwargs)
        except BaseException:
            self._release()
            raise
        response._resource_closers.append(self._release)  # type: ignore[attr-defined]
        return response

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        check_body_size(request._request)
        has_body = self.reads_body and request.method == "POST"
        if has_body:
            check_content_type(request)
        super().initial(request, *args, **kwargs)
        if has_body:
            count = reserve_memory(request._request, request.user.pk)
            self.reserved = (request.user.pk, count)

    def _release(self) -> None:
        """Free the body: the request is a reference cycle and would wait for garbage collection."""
        body_memory.release(*self.reserved)
        request = self.__dict__.get("request")
        if isinstance(request, Request):
            request.__dict__.clear()
        self.__dict__.clear()

    def perform_authentication(self, request: Request) -> None:
        super().perform_authentication(request)
        bind_contextvars(user_id=request.user.pk)  # for all later log lines


class RegistryView(SizeLimitedView):
    """Base of the views that use a registry and an executor.

    The first request starts the process's executor, which keeps the health in the process's
    registry current. The owner of a passed registry and executor must start them.
    """

    registry: Registry = registry
    executor_override: Executor | None = None
    registry_operation: ClassVar[str] = ""
    """The operation by which a GET reads the registry, for metrics; empty when it does not."""

    @property
    def executor(self) -> Executor:
        """The passed executor, or the process's own."""
        return self.executor_override or get_executor()

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if self.executor_override is None:
            self.executor.ensure_started()
        if self.registry_operation and request.method in ("GET", "HEAD"):
            signals.registry_read.send_robust(None, operation=self.registry_operation)
        return self.dispatch_view(request, *args, **kwargs)

    def dispatch_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Call DRF's dispatch; the executor has been started before."""
        return super().dispatch(request, *args, **kwargs)

    def link(self, text: str, view_name: str, query: str = "", **kwargs: str) -> Link:
        """Return a link to a related view, for the browsable API."""
        url = reverse(view_name, kwargs=kwargs, request=self.request)
        return {"text": text, "url": url + query}


class RootView(RegistryView):
    """Run untrusted code in the isolation that suits it."""

    name = "Vulcan"
    permission_classes = [AllowAny]

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        names = (
            *("backends", "routes", "resolve", "workloads", "workloads-async", "nodes"),
            *("tokens", "schema", "docs"),
        )
        return Response(
            {
                name: reverse(name, request=request)
                + ("?runtime=node" if name == "resolve" else "")
                for name in names
            }
        )


class BackendListView(RegistryView):
    """Every registered backend with its capabilities and its current health."""

    name = "Backends"
    registry_operation = "list"
    permission_classes = [AllowAny]

    def dispatch_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Return 304 before DRF's dispatch when neither negotiation nor a user is needed."""
        if "HTTP_IF_NONE_MATCH" not in request.META or not _is_plain(request):
            return super().dispatch_view(request, *args, **kwargs)
        not_modified = _not_modified(request, backend_list(self.registry.snapshot).etag)
        if not_modified is None:
            return super().dispatch_view(request, *args, **kwargs)
        not_modified.headers["Vary"] = "Accept, Cookie"
        return not_modified

    @extend_schema(
        operation_id="backends_list",
        responses={200: BackendInfoSerializer(many=True), 304: None, **errors(401, 406)},
    )
    def get(self, request: Request) -> HttpResponse:
        rendered = backend_list(self.registry.snapshot)
        if request.accepted_media_type != "application/json":  # HTML, or indented JSON
            return Response(rendered.data)
        return _not_modified(request._request, rendered.etag) or HttpResponse(
            rendered.body, content_type="application/json", headers={"ETag": rendered.etag}
        )

    def links(self) -> list[Link]:
        return [
            *(self.link(name, "backend", name=name) for name in self.registry),
            self.link("routes", "routes"),
            self.link("run a workload", "workloads"),
        ]


class BackendDetailView(RegistryView):
    """One backend, and the routes that target it."""

    registry_operation = "get"
    permission_classes = [AllowAny]

    @extend_schema(
        operation_id="backends_retrieve",
        responses={200: BackendDetailSerializer, **errors(401, 404, 406)},
    )
    def get(self, request: Request, name: str) -> Response:
        snapshot = self.registry.snapshot
        info = next((info for info in snapshot.list() if info.name == name), None)
        if info is None:
            missing = BackendNotRegistered(name, tuple(snapshot.entries))
            raise NotFound(str(missing), code="backend_not_registered")
        routes = [route for route in snapshot.routes if route.target == name]
        return Response(
            BackendDetailSerializer(
                {
                    **{part.name: getattr(info, part.name) for part in fields(info)},
                    "routes": [route_row(route, snapshot) for route in routes],
                    "changed_at": snapshot.entries[name].changed_at,
                }
            ).data
        )

    def get_view_name(self) -> str:
        """Return the backend's name; the breadcrumbs call this on a view without a request."""
        return str(getattr(self, "kwargs", {}).get("name", "Backend"))[:63]

    def links(self) -> list[Link]:
        return [self.link("all backends", "backends"), self.link("run a workload", "workloads")]


class RouteListView(RegistryView):
    """The routes of `auto`, and whether each target is available now."""

    name = "Routes"
    registry_operation = "routes"
    permission_classes = [AllowAny]

    @extend_schema(
        operation_id="routes_list",
        responses={200: RouteSerializer(many=True), **errors(401, 406)},
    )
    def get(self, request: Request) -> Response:
        snapshot = self.registry.snapshot
        rows = [route_row(route, snapshot) for route in snapshot.routes]
        return Response(RouteSerializer(rows, many=True).data)

    def links(self) -> list[Link]:
        return [
            self.link(f"resolve {runtime}", "resolve", f"?runtime={runtime}")
            for runtime in RUNTIMES
        ]


class ResolveView(RegistryView):
    """The backend that would run a workload, and why, without running it."""

    name = "Resolve"
    registry_operation = "explain"
    permission_classes = [AllowAny]
    PARAMETERS = ("isolation", "runtime", "source_format")

    @extend_schema(
        operation_id="resolve",
        parameters=[
            OpenApiParameter(
                "isolation",
                {"type": "string", "minLength": 1, "default": AUTO},
                description="auto, a backend name, or comma-separated names, most preferred first.",
            ),
            OpenApiParameter(
                "runtime",
                {"type": "string", "minLength": 1, "maxLength": 63},
                description="node, wasm, python, go or oci; optional if source_format is image.",
            ),
            OpenApiParameter(
                "source_format",
                {"type": "string", "enum": list(SOURCE_FORMATS), "default": "code"},
            ),
        ],
        responses={
            200: ResolutionSerializer,
            400: OpenApiResponse(UnresolvedSerializer, DESCRIPTIONS[400]),
            503: OpenApiResponse(UnresolvedSerializer, DESCRIPTIONS[503]),
            **errors(401, 406),
        },
    )
    def get(self, request: Request) -> Response:
        query = self._query(request)
        resolution = self.registry.explain(
            parse_isolation(query.get("isolation", AUTO)),
            query.get("runtime"),
            query.get("source_format", "code"),
        )
        if resolution.error is None:
            return Response(ResolutionSerializer(resolution).data)
        response = self.handle_exception(resolution.error)
        response.data["candidates"] = CandidateSerializer(resolution.candidates, many=True).data
        return response

    def _query(self, request: Request) -> dict[str, str]:
        """Return the parameters, known and each at most once; `format` is DRF's own."""
        query = request.query_params
        for key in query:
            if key not in (*self.PARAMETERS, "format"):
                raise InvalidRequest(
                    short_repr(key)[1:-1],
                    f"Unknown parameter. Known: {comma_join(self.PARAMETERS)}.",
                )
            if len(query.getlist(key)) > 1:
                raise InvalidRequest(key, "Given more than once; separate names by commas.")
        return query.dict()

    def links(self) -> list[Link]:
        return [
            self.link("all routes", "routes"),
            *(self.link(runtime, "resolve", f"?runtime={runtime}") for runtime in RUNTIMES),
            self.link("image", "resolve", "?source_format=image"),
            self.link("archive", "resolve", "?runtime=python&source_format=archive"),
        ]


class OwnerScopedView(RegistryView):
    """Limits users to their own workloads, except staff; others' workloads are 404."""

    permission_classes = [IsAuthenticated]

    def visible_workloads(self) -> WorkloadQuerySet:
        """Return the workloads that the user may see."""
        return Workload.objects.all().visible_to(self.request.user)

    def get_workload(self, workload_id: str) -> Workload:
        """Return one workload that the user may see, or raise `NotFound`."""
        workload = None
        if is_workload_id(workload_id):
            workload = self.visible_workloads().filter(pk=workload_id).first()
        if workload is None:
            raise NotFound()
        return workload


class SubmitView(OwnerScopedView, GenericAPIView):
    """Accepts a workload as JSON or as a form."""

    serializer_class = WorkloadRequestSerializer
    throttle_classes = [UserThrottle, AddressThrottle]
    reads_body = True
    SERIALIZER = WorkloadSerializer()  # shared: building its fields is slow

    def parse_submission(self, request: Request) -> Submission:
        """Read and validate the body; raise `ValidationError` or `InvalidRequest`."""
        size = int(request.META.get("CONTENT_LENGTH") or 0)
        with thread_shares.hold(request.user.pk) if size > LARGE_BODY_BYTES else nullcontext():
            data = request.data  # a client may send it slowly
        serializer = self.get_serializer(data=data)
        try:
            serializer.is_valid(raise_exception=True)
            return Submission(
                spec=workload_spec(serializer.validated_data),
                owner_id=request.user.pk,
                key=_idempotency_key(request),
                rerun_if_lost=serializer.validated_data["rerun_if_lost"],
            )
        finally:
            serializer.__dict__.clear()  # a reference cycle that holds the body

    def workload_response(self, workload: Workload, status: int) -> Response:
        """Return the workload with its URL as Location, and Retry-After when it has not ended."""
        url = reverse("workload", kwargs={"workload_id": workload.pk}, request=self.request)
        data = self.SERIALIZER.to_representation(workload)
        headers = {"Location": url}
        if status == HTTP_202_ACCEPTED:
            headers["Retry-After"] = str(RETRY_CAPACITY_S)
        return Response(data, status=status, headers=headers)


class WorkloadsView(SubmitView):
    """Your workloads, newest first. POST one to run it and wait for its end.

    POST JSON, or fill in the form. A program that fails is not an error of the API: see status and
    exit_reason.
    """

    name = "Workloads"

    @extend_schema(
        operation_id="workloads_list",
        parameters=[WorkloadQuerySerializer],
        responses={200: WorkloadPageSerializer, **errors(400, 401, 403, 406)},
    )
    def get(self, request: Request) -> Response:
        query = WorkloadQuerySerializer(data=request.query_params)
        query.is_valid(raise_exception=True)
        filters = query.validated_data
        workloads = self.visible_workloads().summaries().select_related("owner")
        for name, lookup in FILTERS.items():
            if name in filters:
                workloads = workloads.filter(**{lookup: filters[name]})
        pagination = WorkloadPagination()
        rows = pagination.paginate_queryset(workloads, request, view=self)
        return pagination.get_paginated_response(
            WorkloadRowSerializer(rows, many=True, context=self.get_serializer_context()).data
        )

    @extend_schema(
        operation_id="workloads_create",
        request={"application/json": WorkloadRequestSerializer},
        parameters=[IDEMPOTENCY_KEY],
        responses={
            201: WorkloadSerializer,
            202: OpenApiResponse(WorkloadSerializer, "It is still pending or running; poll it."),
            **errors(400, 401, 403, 406, 409, 411, 413, 415, 429, 503),
        },
        examples=[TYPESCRIPT],
    )
    def post(self, request: Request) -> Response:
        submission = self.parse_submission(request)
        try:
            with thread_shares.hold(request.user.pk):
                workload = self.executor.run(submission)
        except TooManyWaiting:
            workload = self.executor.submit(submission)
        return self.workload_response(workload, 201 if workload.ended else HTTP_202_ACCEPTED)

    def links(self) -> list[Link]:
        return [
            self.link("submit without waiting", "workloads-async"),
            *(self.link(str(status), "workloads", f"?status={status}") for status in Status),
            self.link("backends", "backends"),
            self.link("routes", "routes"),
        ]


class AsyncWorkloadsView(SubmitView):
    """Submit a workload without waiting for its end; Location is where to poll it."""

    name = "Submit"

    @extend_schema(
        operation_id="workloads_submit",
        request={"application/json": WorkloadRequestSerializer},
        parameters=[IDEMPOTENCY_KEY],
        responses={
            202: WorkloadSerializer,
            **errors(400, 401, 403, 406, 409, 411, 413, 415, 429, 503),
        },
        examples=[TYPESCRIPT],
    )
    def post(self, request: Request) -> Response:
        return self.workload_response(
            self.executor.submit(self.parse_submission(request)), HTTP_202_ACCEPTED
        )

    def links(self) -> list[Link]:
        return [self.link("your workloads", "workloads")]


class WorkloadView(OwnerScopedView):
    """One workload: its status, and its result when it has ended."""

    SERIALIZER = WorkloadSerializer()

    @extend_schema(
        operation_id="workloads_retrieve",
        responses={200: WorkloadSerializer, **errors(401, 403, 404, 406)},
    )
    def get(self, request: Request, workload_id: str) -> Response:
        return Response(self.SERIALIZER.to_representation(self.get_workload(workload_id)))

    @extend_schema(
        operation_id="workloads_kill",
        responses={
            200: OpenApiResponse(WorkloadSerializer, "It was killed."),
            202: OpenApiResponse(WorkloadSerializer, "Its kill was requested."),
            **errors(401, 403, 404, 406, 409),
        },
    )
    def delete(self, request: Request, workload_id: str) -> Response:
        workload = self.get_workload(workload_id)
        try:
            with thread_shares.hold(request.user.pk):
                lifecycle.kill(workload)
        except TooManyWaiting:
            lifecycle.kill(workload, wait_s=0)
        status = 200 if workload.ended else 202
        return Response(self.SERIALIZER.to_representation(workload), status=status)

    def get_view_name(self) -> str:
        return "Workload"

    def links(self) -> list[Link]:
        workload_id = self.kwargs["workload_id"]
        return [
            self.link("follow its log", "workload-logs", workload_id=workload_id),
            self.link("its log so far", "workload-history", workload_id=workload_id),
            self.link("your workloads", "workloads"),
        ]


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
    """Streams a log until its end or until the client disconnects; raises `TooManyWaiting`."""

    def __init__(self, workload_id: str, after: int, user_id: int | None) -> None:
        with ExitStack() as stack:
            stack.enter_context(thread_shares.hold(user_id))
            follower = stack.enter_context(log_hub.subscribe(workload_id))
            self._resources = stack.pop_all()
        release_connection()
        super().__init__(
            sse_events(follower, after),
            content_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    def close(self) -> None:
        self._resources.close()
        super().close()


class NodesView(RegistryView):
    """The hosts that run workloads, with their backends, health and running workloads."""

    name = "Nodes"
    permission_classes = [IsAuthenticated]

    @extend_schema(
        operation_id="nodes_list",
        responses={200: NodeSerializer(many=True), **errors(401, 403, 406)},
    )
    def get(self, request: Request) -> Response:
        return Response(NodeSerializer(self.executor.live_nodes(), many=True).data)

    def links(self) -> list[Link]:
        return [self.link("backends", "backends")]


class _JSONErrors(APIView):
    """Renders errors in the JSON envelope, whatever the view renders otherwise."""

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        response = super().finalize_response(request, response, *args, **kwargs)
        if response.status_code >= 400:
            response.accepted_renderer = JSONRenderer()
            response.accepted_media_type = "application/json"
        return response


class SchemaView(_JSONErrors, SpectacularAPIView):
    """The OpenAPI document."""

    generator_class = CachedGenerator


class SwaggerView(_JSONErrors, SpectacularSwaggerSplitView):
    """The OpenAPI document in Swagger UI, from local files."""


class UnknownPathView(SizeLimitedView):
    """Returns 404 in the envelope for every unknown path under the API."""

    permission_classes = [AllowAny]

    @extend_schema(exclude=True)
    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        raise NotFound()


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[!-~]{1,255}", key):
        raise InvalidRequest(
            "Idempotency-Key", "Must be 1 to 255 visible ASCII characters without spaces."
        )
    return key


def _is_plain(request: HttpRequest) -> bool:
    """Return whether the response is JSON and the same for all users, without negotiation."""
    meta = request.META
    return (
        request.method in ("GET", "HEAD")
        and meta.get("HTTP_ACCEPT", "") in ("", "*/*", "application/json")
        and not meta.get("QUERY_STRING")
        and "HTTP_AUTHORIZATION" not in meta
    )


def _not_modified(request: HttpRequest, etag: str) -> HttpResponse | None:
    """Return 304 when the client has this ETag, else None; ignore all other preconditions."""
    response = get_conditional_response(request, etag=etag)
    if response is None or response.status_code != 304:
        return None
    response.headers["ETag"] = etag
    return response


def route_row(route: Route, snapshot: Snapshot) -> dict[str, Any]:
    """Return a row of the route table, and whether its target is eligible now, with the reason."""
    entry = snapshot.entries.get(route.target)
    ineligibility = check_eligibility(entry, route.runtime, route.source_format)
    return {
        **asdict(route),
        "rule": route.rule,
        "eligible": ineligibility is None,
        "reason": describe_eligibility(entry, ineligibility),
    }
