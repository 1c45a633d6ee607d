"""Workloads: list, run, submit, show and kill them."""

import re
from contextlib import nullcontext

from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse
from rest_framework.exceptions import NotFound
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.status import HTTP_202_ACCEPTED

from ...exceptions import InvalidRequest, TooManyWaiting
from ...execution import lifecycle
from ...execution.lifecycle import Submission
from ...models import Workload, WorkloadQuerySet, is_workload_id
from ...utils.shares import thread_shares
from ...workloads import Status
from ..errors import RETRY_CAPACITY_S
from ..pagination import WorkloadPagination
from ..schema import errors, extend_schema
from ..serializers.workload_request import WorkloadRequestSerializer, workload_spec
from ..serializers.workloads import (
    WorkloadPageSerializer,
    WorkloadQuerySerializer,
    WorkloadRowSerializer,
    WorkloadSerializer,
)
from ..throttles import AddressThrottle, UserThrottle
from .base import Link, RegistryView

LARGE_BODY_BYTES = 32 * 1024  # the server reads smaller bodies completely before the view runs
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
        workloads = self.visible_workloads().filter_by(query.validated_data)
        pagination = WorkloadPagination()
        rows = pagination.paginate_queryset(
            workloads.summaries().select_related("owner"), request, view=self
        )
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


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[!-~]{1,255}", key):
        raise InvalidRequest(
            "Idempotency-Key", "Must be 1 to 255 visible ASCII characters without spaces."
        )
    return key
