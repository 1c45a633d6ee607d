"""Base views: the API's policies, bounds on the body, the registry and the executor of a view."""

from collections.abc import Callable
from typing import Any, ClassVar

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from drf_spectacular.openapi import AutoSchema
from rest_framework.metadata import SimpleMetadata
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.permissions import IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.versioning import NamespaceVersioning
from rest_framework.views import APIView
from structlog.contextvars import bind_contextvars

from ...executors.views import ExecutorView
from ..authentication import SessionAuthentication, TokenAuthentication
from ..bodies import body_memory
from ..handler import handle_exception
from ..parsers import StrictJSONParser, check_body_size, check_content_type, reserve_memory
from ..renderers import ExplorableAPIRenderer

Link = dict[str, str]


class Versioning(NamespaceVersioning):
    """The namespace of the URLs is the version."""

    default_version = "v1"
    allowed_versions = ["v1"]


class PolicyView(APIView):
    """Base of all views: sets the policies that DRF would take from the project's REST_FRAMEWORK.

    So the API behaves the same in every project, and a project's own API keeps its settings.
    """

    # Tokens first, so that unauthenticated requests get 401 instead of 403.
    authentication_classes = [TokenAuthentication, SessionAuthentication]
    permission_classes = [IsAuthenticated]
    throttle_classes = []
    parser_classes = [StrictJSONParser, FormParser, MultiPartParser]  # forms: the browsable API's
    renderer_classes = [JSONRenderer, ExplorableAPIRenderer]
    content_negotiation_class = DefaultContentNegotiation
    metadata_class = SimpleMetadata
    versioning_class = Versioning
    schema = AutoSchema()

    def get_exception_handler(self) -> Callable[[Exception, Any], Response | None]:
        return handle_exception


class SizeLimitedView(PolicyView):
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


class RegistryView(ExecutorView, SizeLimitedView):
    """Base of the views that use a registry and an executor."""

    def link(self, text: str, view_name: str, query: str = "", **kwargs: str) -> Link:
        """Return a link to a related view, for the browsable API."""
        url = reverse(view_name, kwargs=kwargs, request=self.request)
        return {"text": text, "url": url + query}
