"""Handle the exceptions of all API views: every error has the same envelope."""

import logging
from typing import Any

from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from drf_standardized_errors.formatter import ExceptionFormatter
from drf_standardized_errors.handler import ExceptionHandler
from rest_framework.exceptions import APIException, ParseError
from rest_framework.response import Response
from rest_framework.status import HTTP_503_SERVICE_UNAVAILABLE

from ..exceptions import VulcanError
from .errors import PayloadTooLarge, to_api_exception, to_unavailable

logger = logging.getLogger(__name__)


class EnvelopeExceptionHandler(ExceptionHandler):
    """drf-standardized-errors' handler, extended to this project's and Django's errors."""

    def convert_known_exceptions(self, exc: Exception) -> Exception:
        if unavailable := to_unavailable(exc):
            return unavailable
        match exc:
            case VulcanError():
                return to_api_exception(exc)
            case RequestDataTooBig():
                return PayloadTooLarge()
            case SuspiciousOperation():
                return ParseError("The request was refused as malformed.")
        return super().convert_known_exceptions(exc)

    def format_exception(self, exc: APIException) -> Any:
        """Use drf-standardized-errors' own formatter, whichever one the project's settings name."""
        return ExceptionFormatter(exc, self.context, self.exc).run()

    def report_exception(self, exc: APIException, response: Any) -> None:
        """Log unavailable dependencies as warnings without a traceback: they are not bugs."""
        if exc.status_code == HTTP_503_SERVICE_UNAVAILABLE:
            logger.warning("%s", exc.__cause__ or exc.detail)
        else:
            super().report_exception(exc, response)


def handle_exception(exc: Exception, context: Any) -> Response | None:
    """Return the response for an exception of a view, or None to raise it again."""
    response: Response | None = EnvelopeExceptionHandler(exc, context).run()
    return response
