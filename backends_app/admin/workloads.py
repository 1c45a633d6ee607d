"""Admin pages of the workloads, with the actions kill, rerun and export."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import flatten_fieldsets
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.defaultfilters import filesizeformat
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from ..exceptions import InvalidRequest, VulcanError, WorkloadFinished
from ..execution import lifecycle
from ..executors import start_executor
from ..logs import store
from ..models import Workload
from ..utils.figures import format_duration
from ..workloads import Status
from .base import ReadOnlyAdmin
from .changelist import (
    LOOKUPS,
    BackendFilter,
    BoundedPaginator,
    RuntimeFilter,
    WorkloadChangeList,
    search_q,
)
from .display import (
    NOTHING,
    escape_controls,
    format_datetime,
    json_block,
    state_badge,
    table,
    text_block,
)
from .export import export_response

MAX_SELECTED = 100
MAX_LISTED_IDS = 10
SHORT_ID = 12
MAX_LOG_LINES = 200
MAX_LINE_CHARS = 500


class WorkloadAdmin(ReadOnlyAdmin):
    """The records; the list omits the large columns."""

    list_display = [
        *("short_id", "status_shown", "runtime", "backend", "exit_reason"),
        *("node", "owner", "created", "took"),
    ]
    list_filter = ["status", RuntimeFilter, BackendFilter, "exit_reason", "created_at"]
    list_select_related = ["owner"]
    search_fields = [
        "id",
        "owner__username",
        "node",
    ]  # shows the search box; see `get_search_results`
    search_help_text = (
        "An id or its prefix, part of the owner's name, or the name of a node. "
        "Several words must all match."
    )
    sortable_by = ["created"]
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    actions = ["rerun", "kill", "export_csv", "export_json"]

    fieldsets = [
        (
            None,
            {
                "fields": [
                    *("id", "status_shown", "owner"),
                    *("created", "started", "finished"),
                ]
            },
        ),
        (
            "Routing",
            {
                "fields": [
                    *("runtime", "source_format", "isolation_shown", "backend"),
                    *("rule_shown", "candidates_shown", "node", "node_id"),
                    *("attempt", "rerun_if_lost"),
                ]
            },
        ),
        (
            "Result",
            {
                "fields": [
                    *("exit_reason", "exit_code", "signal", "error_shown"),
                    *("took", "compile_time", "cpu_time", "memory", "output_shown"),
                    *("stdout_shown", "stdout_truncated", "stdout_encoding"),
                    *("stderr_shown", "stderr_truncated", "stderr_encoding"),
                    "log_shown",
                ]
            },
        ),
        (
            "Limits and bookkeeping",
            {
                "fields": [
                    *("cpus", "mem_mb", "timeout_s", "log_lines", "idempotency_shown"),
                    *("idempotency_digest", "kill_requested", "outputs_pruned"),
                ]
            },
        ),
    ]
    readonly_fields = flatten_fieldsets(fieldsets)

    # Fields

    @admin.display(description="id")
    def short_id(self, workload: Workload) -> str:
        return f"{workload.pk[:SHORT_ID]}…"

    @admin.display(description="status")
    def status_shown(self, workload: Workload) -> SafeString:
        return state_badge(workload.status)

    @admin.display(description="backend")
    def backend(self, workload: Workload) -> str:
        return workload.isolation_used

    @admin.display(description="created", ordering="created_at")
    def created(self, workload: Workload) -> str:
        return format_datetime(workload.created_at)

    @admin.display(description="started")
    def started(self, workload: Workload) -> str:
        return format_datetime(workload.started_at)

    @admin.display(description="finished")
    def finished(self, workload: Workload) -> str:
        return format_datetime(workload.finished_at)

    @admin.display(description="kill requested")
    def kill_requested(self, workload: Workload) -> str:
        return format_datetime(workload.kill_requested_at)

    @admin.display(description="outputs deleted")
    def outputs_pruned(self, workload: Workload) -> str:
        return format_datetime(workload.outputs_pruned_at)

    @admin.display(description="duration")
    def took(self, workload: Workload) -> str:
        return format_duration(workload.duration_ms)

    @admin.display(description="compile time")
    def compile_time(self, workload: Workload) -> str:
        return format_duration(workload.compile_ms)

    @admin.display(description="CPU time")
    def cpu_time(self, workload: Workload) -> str:
        return format_duration(workload.cpu_time_ms)

    @admin.display(description="peak memory")
    def memory(self, workload: Workload) -> str:
        peak = workload.memory_bytes
        return NOTHING if peak is None else filesizeformat(peak)

    @admin.display(description="requested isolation")
    def isolation_shown(self, workload: Workload) -> str:
        names = workload.isolation
        return escape_controls(names if isinstance(names, str) else ", ".join(map(str, names)))

    @admin.display(description="rule")
    def rule_shown(self, workload: Workload) -> str:
        return escape_controls(workload.rule)

    @admin.display(description="candidates")
    def candidates_shown(self, workload: Workload) -> SafeString:
        rows = (
            (one["name"], "yes" if one["eligible"] else "no", escape_controls(one["reason"]))
            for one in workload.candidates
        )
        return table(["Backend", "Eligible", "Reason"], rows, "Candidates")

    @admin.display(description="error")
    def error_shown(self, workload: Workload) -> SafeString | str:
        return text_block(workload.error, "Error")

    @admin.display(description="output")
    def output_shown(self, workload: Workload) -> SafeString | str:
        return json_block(workload.output, "Output")

    @admin.display(description="stdout")
    def stdout_shown(self, workload: Workload) -> SafeString | str:
        return text_block(workload.stdout, "stdout")

    @admin.display(description="stderr")
    def stderr_shown(self, workload: Workload) -> SafeString | str:
        return text_block(workload.stderr, "stderr")

    @admin.display(description="idempotency key")
    def idempotency_shown(self, workload: Workload) -> str:
        return escape_controls(workload.idempotency_key or "") or NOTHING

    @admin.display(description="log")
    def log_shown(self, workload: Workload) -> SafeString | str:
        """Render the last lines. The API serves the full log."""
        after = max(0, workload.log_lines - MAX_LOG_LINES)
        lines = store.lines_after(store.blocks_after(workload.pk, after), after)
        rows = [
            (line.number, line.stream, escape_controls(line.text, MAX_LINE_CHARS))
            for line in islice(lines, MAX_LOG_LINES)
        ]
        if not rows:
            return NOTHING
        shown = table(["Line", "Stream", "Text"], rows, "Log")
        if not after:
            return shown
        return format_html("Last {} of {} lines:{}", len(rows), workload.log_lines, shown)

    def view_on_site(self, workload: Workload) -> str:
        return reverse("v1:workload", kwargs={"workload_id": workload.pk})

    # The list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[WorkloadChangeList]:
        return WorkloadChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup in LOOKUPS and "\0" not in value  # PostgreSQL cannot store NUL

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Workload], search_term: str
    ) -> tuple[QuerySet[Workload], bool]:
        return queryset.filter(search_q(search_term)), False

    # Actions

    def has_kill_permission(self, request: HttpRequest) -> bool:
        return self.has_model_perm("kill", request)

    def has_rerun_permission(self, request: HttpRequest) -> bool:
        return self.has_model_perm("rerun", request)

    def has_export_permission(self, request: HttpRequest) -> bool:
        return self.has_model_perm("export", request)

    @admin.action(description="Rerun the selected workloads", permissions=["rerun"])
    def rerun(self, request: HttpRequest, queryset: QuerySet[Workload]) -> None:
        self._run_action(self._rerun, request, queryset)

    @admin.action(description="Kill the selected workloads", permissions=["kill"])
    def kill(self, request: HttpRequest, queryset: QuerySet[Workload]) -> None:
        self._run_action(self._kill, request, queryset)

    @admin.action(description="Export the selected workloads as CSV", permissions=["export"])
    def export_csv(self, request: HttpRequest, queryset: QuerySet[Workload]) -> HttpResponseBase:
        return export_response(
            "csv", queryset, partial(self._log_actions, request, "Exported as CSV.")
        )

    @admin.action(description="Export the selected workloads as JSON", permissions=["export"])
    def export_json(self, request: HttpRequest, queryset: QuerySet[Workload]) -> HttpResponseBase:
        return export_response(
            "json", queryset, partial(self._log_actions, request, "Exported as JSON.")
        )

    def get_urls(self) -> list[URLPattern]:
        buttons = [
            path(
                f"<path:object_id>/{verb}/",
                self.admin_site.admin_view(self.button_view),
                {"verb": verb},
                name=f"{self.opts.app_label}_{self.opts.model_name}_{verb}",
            )
            for verb in ("kill", "rerun")
        ]
        return [*buttons, *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        workload = context["original"]
        context["may_kill"] = self.has_model_perm("kill", request) and not workload.ended
        context["may_rerun"] = self.has_model_perm("rerun", request)
        return super().render_change_form(request, context, *args, **kwargs)

    @method_decorator(require_POST)
    def button_view(self, request: HttpRequest, object_id: str, verb: str) -> HttpResponse:
        """Kill or rerun one workload, and redirect to it or to its rerun."""
        if not self.has_model_perm(verb, request):
            raise PermissionDenied
        workload = self.get_object(request, object_id)
        if workload is None:
            raise Http404
        operation = {"kill": self._kill, "rerun": self._rerun}[verb]
        target = [*operation(request, [workload]), workload][0]
        return HttpResponseRedirect(self._change_url(target))

    def _run_action(
        self,
        operation: Callable[[HttpRequest, Sequence[Workload]], object],
        request: HttpRequest,
        queryset: QuerySet[Workload],
    ) -> None:
        """Run an action on at most MAX_SELECTED workloads, since the request waits for it."""
        workloads = list(queryset[: MAX_SELECTED + 1])
        if len(workloads) > MAX_SELECTED:
            message = f"Nothing was done: select at most {MAX_SELECTED} workloads at a time."
            self.message_user(request, message, messages.ERROR)
        else:
            operation(request, workloads)

    def _rerun(self, request: HttpRequest, workloads: Sequence[Workload]) -> list[Workload]:
        """Resubmit the workloads with the current user as owner; return the new ones."""
        executor = start_executor()
        submitted: list[Workload] = []
        errors: Counter[str] = Counter()
        for workload in workloads:
            try:
                new = executor.submit(lifecycle.resubmission(workload, _user_id(request)))
            except InvalidRequest as error:
                errors[error.reason] += 1
            except VulcanError as error:
                errors[str(error)] += 1
            else:
                self.log_change(request, workload, f"Rerun as {new.pk}.")
                self.log_addition(request, new, f"Rerun of {workload.pk}.")
                submitted.append(new)
        self._report(request, "submitted again", messages.SUCCESS, submitted)
        for reason, count in errors.items():
            message = f"{count} could not be rerun. {reason}"
            self.message_user(request, message, messages.ERROR)
        return submitted

    def _kill(self, request: HttpRequest, workloads: Sequence[Workload]) -> list[Workload]:
        """Request the kill of all workloads, then wait for them together, at most KILL_WAIT_S."""
        requested = []
        for workload in workloads:
            try:
                lifecycle.kill(workload, wait_s=0)
            except WorkloadFinished:
                continue
            self.log_change(request, workload, "Kill requested.")
            requested.append(workload)
        deadline = time.monotonic() + lifecycle.KILL_WAIT_S
        for workload in requested:
            lifecycle.wait(workload, deadline - time.monotonic())
        killed = [one for one in workloads if one in requested and one.status == Status.KILLED]
        pending = [one for one in workloads if not one.ended]
        finished = [one for one in workloads if one not in killed and one not in pending]
        self._report(request, "killed", messages.SUCCESS, killed)
        self._report(request, "requested to be killed", messages.WARNING, pending)
        self._report(request, "already finished", messages.WARNING, finished)
        return []

    def _report(
        self, request: HttpRequest, outcome: str, level: int, workloads: Sequence[Workload]
    ) -> None:
        """Show a message with the number of workloads and links to the first MAX_LISTED_IDS."""
        if not workloads:
            return
        links = ((self._change_url(one), one.pk) for one in workloads[:MAX_LISTED_IDS])
        message = format_html(
            "{} {}: {}{}",
            len(workloads),
            outcome,
            format_html_join(", ", '<a href="{}">{}</a>', links),
            ", …" if len(workloads) > MAX_LISTED_IDS else "",
        )
        self.message_user(request, message, level)

    def _change_url(self, workload: Workload) -> str:
        name = f"{self.opts.app_label}_{self.opts.model_name}_change"
        return reverse(f"{self.admin_site.name}:{name}", args=[workload.pk])

    def _log_actions(
        self, request: HttpRequest, message: str, workloads: Sequence[Workload]
    ) -> None:
        LogEntry.objects.log_actions(
            user_id=_user_id(request),
            queryset=workloads,
            action_flag=CHANGE,
            change_message=message,
        )


def _user_id(request: HttpRequest) -> int:
    """Return the id of the user, who has signed in to reach an admin page."""
    assert request.user.pk is not None
    return request.user.pk
