"""Workloads: who ran what and where, what came of it, and what an operator may do about it."""

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

from .. import lifecycle, logs
from ..exceptions import InvalidRequest, VulcanError, WorkloadFinished
from ..executors import get_executor
from ..models import Workload
from ..workloads import Status
from .base import ReadOnlyAdmin
from .changelist import (
    LOOKUPS,
    BackendFilter,
    BoundedPaginator,
    RuntimeFilter,
    WorkloadChangeList,
    meant,
)
from .display import NOTHING, block, document, duration, moment, state, table, visible
from .export import exported

MAX_AT_ONCE = 100
MAX_NAMED = 10
SHORT_ID = 12
MAX_LOG_LINES = 200
MAX_LINE_CHARS = 500


class WorkloadAdmin(ReadOnlyAdmin):
    """The records; the large columns only where one workload is shown."""

    list_display = [
        *("short_id", "status_shown", "runtime", "backend", "exit_reason"),
        *("node", "owner", "created", "took"),
    ]
    list_filter = ["status", RuntimeFilter, BackendFilter, "exit_reason", "created_at"]
    list_select_related = ["owner"]
    date_hierarchy = "created_at"
    search_fields = ["id", "owner__username", "node"]  # what `get_search_results` looks in
    search_help_text = (
        "An id or its beginning, a part of the owner's name, or the name of a node; "
        "of several words each has to be found."
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
            "Where it went, and why",
            {
                "fields": [
                    *("runtime", "source_format", "isolation_shown", "backend"),
                    *("rule_shown", "candidates_shown", "node", "node_id"),
                    *("attempt", "rerun_if_lost"),
                ]
            },
        ),
        (
            "What came of it",
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
            "What it might use, and its record",
            {
                "fields": [
                    *("cpus", "mem_mb", "timeout_s", "log_lines", "idempotency_shown"),
                    *("idempotency_digest", "kill_requested", "outputs_pruned"),
                ]
            },
        ),
    ]
    readonly_fields = flatten_fieldsets(fieldsets)

    # What is shown

    @admin.display(description="id")
    def short_id(self, workload: Workload) -> str:
        return f"{workload.pk[:SHORT_ID]}…"

    @admin.display(description="status")
    def status_shown(self, workload: Workload) -> SafeString:
        return state(workload.status)

    @admin.display(description="backend")
    def backend(self, workload: Workload) -> str:
        return workload.isolation_used

    @admin.display(description="created", ordering="created_at")
    def created(self, workload: Workload) -> str:
        return moment(workload.created_at)

    @admin.display(description="started")
    def started(self, workload: Workload) -> str:
        return moment(workload.started_at)

    @admin.display(description="finished")
    def finished(self, workload: Workload) -> str:
        return moment(workload.finished_at)

    @admin.display(description="kill asked for")
    def kill_requested(self, workload: Workload) -> str:
        return moment(workload.kill_requested_at)

    @admin.display(description="outputs deleted")
    def outputs_pruned(self, workload: Workload) -> str:
        return moment(workload.outputs_pruned_at)

    @admin.display(description="duration")
    def took(self, workload: Workload) -> str:
        return duration(workload.duration_ms)

    @admin.display(description="compiled in")
    def compile_time(self, workload: Workload) -> str:
        return duration(workload.compile_ms)

    @admin.display(description="processor time")
    def cpu_time(self, workload: Workload) -> str:
        return duration(workload.cpu_time_ms)

    @admin.display(description="memory at its peak")
    def memory(self, workload: Workload) -> str:
        peak = workload.memory_bytes
        return NOTHING if peak is None else filesizeformat(peak)

    @admin.display(description="isolation asked for")
    def isolation_shown(self, workload: Workload) -> str:
        asked = workload.isolation
        return visible(asked if isinstance(asked, str) else ", ".join(map(str, asked)))

    @admin.display(description="rule")
    def rule_shown(self, workload: Workload) -> str:
        return visible(workload.rule)

    @admin.display(description="candidates")
    def candidates_shown(self, workload: Workload) -> SafeString:
        rows = (
            (one["name"], "yes" if one["eligible"] else "no", visible(one["reason"]))
            for one in workload.candidates
        )
        return table(["Backend", "Eligible", "Reason"], rows, "Candidates")

    @admin.display(description="error")
    def error_shown(self, workload: Workload) -> SafeString | str:
        return block(workload.error, "Error")

    @admin.display(description="output")
    def output_shown(self, workload: Workload) -> SafeString | str:
        return document(workload.output, "Output")

    @admin.display(description="stdout")
    def stdout_shown(self, workload: Workload) -> SafeString | str:
        return block(workload.stdout, "stdout")

    @admin.display(description="stderr")
    def stderr_shown(self, workload: Workload) -> SafeString | str:
        return block(workload.stderr, "stderr")

    @admin.display(description="idempotency key")
    def idempotency_shown(self, workload: Workload) -> str:
        return visible(workload.idempotency_key or "") or NOTHING

    @admin.display(description="log")
    def log_shown(self, workload: Workload) -> SafeString | str:
        """The last lines; all of them has the API."""
        after = max(0, workload.log_lines - MAX_LOG_LINES)
        lines = logs.lines_after(logs.blocks_after(workload.pk, after), after)
        rows = [
            (line.number, line.stream, visible(line.text, MAX_LINE_CHARS))
            for line in islice(lines, MAX_LOG_LINES)
        ]
        if not rows:
            return NOTHING
        shown = table(["Line", "Stream", "Text"], rows, "Log")
        if not after:
            return shown
        return format_html("The last {} of {} lines:{}", len(rows), workload.log_lines, shown)

    def view_on_site(self, workload: Workload) -> str:
        return reverse("v1:workload", kwargs={"workload_id": workload.pk})

    # The list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[WorkloadChangeList]:
        return WorkloadChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup in LOOKUPS and "\0" not in value  # for which PostgreSQL has no room

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Workload], search_term: str
    ) -> tuple[QuerySet[Workload], bool]:
        return queryset.filter(meant(search_term)), False

    # What can be done

    def has_kill_permission(self, request: HttpRequest) -> bool:
        return self.may("kill", request)

    def has_rerun_permission(self, request: HttpRequest) -> bool:
        return self.may("rerun", request)

    def has_export_permission(self, request: HttpRequest) -> bool:
        return self.may("export", request)

    @admin.action(description="Run the selected workloads again", permissions=["rerun"])
    def rerun(self, request: HttpRequest, queryset: QuerySet[Workload]) -> None:
        self._for_some(self._rerun, request, queryset)

    @admin.action(description="Kill the selected workloads", permissions=["kill"])
    def kill(self, request: HttpRequest, queryset: QuerySet[Workload]) -> None:
        self._for_some(self._kill, request, queryset)

    @admin.action(description="Export the selected workloads as CSV", permissions=["export"])
    def export_csv(self, request: HttpRequest, queryset: QuerySet[Workload]) -> HttpResponseBase:
        return exported("csv", queryset, partial(self._log, request, "Exported as CSV."))

    @admin.action(description="Export the selected workloads as JSON", permissions=["export"])
    def export_json(self, request: HttpRequest, queryset: QuerySet[Workload]) -> HttpResponseBase:
        return exported("json", queryset, partial(self._log, request, "Exported as JSON."))

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
        context["may_kill"] = self.may("kill", request) and not workload.ended
        context["may_rerun"] = self.may("rerun", request)
        return super().render_change_form(request, context, *args, **kwargs)

    @method_decorator(require_POST)
    def button_view(self, request: HttpRequest, object_id: str, verb: str) -> HttpResponse:
        """What a button on the page of one workload does."""
        if not self.may(verb, request):
            raise PermissionDenied
        workload = self.get_object(request, object_id)
        if workload is None:
            raise Http404
        does = {"kill": self._kill, "rerun": self._rerun}[verb]
        follow = [*does(request, [workload]), workload][0]
        return HttpResponseRedirect(self._page_of(follow))

    def _for_some(
        self,
        does: Callable[[HttpRequest, Sequence[Workload]], object],
        request: HttpRequest,
        queryset: QuerySet[Workload],
    ) -> None:
        """Nobody means to do this with thousands, and who asks waits for it."""
        workloads = list(queryset[: MAX_AT_ONCE + 1])
        if len(workloads) > MAX_AT_ONCE:
            said = f"Nothing was done: take at most {MAX_AT_ONCE} workloads at a time."
            self.message_user(request, said, messages.ERROR)
        else:
            does(request, workloads)

    def _rerun(self, request: HttpRequest, workloads: Sequence[Workload]) -> list[Workload]:
        """Submit them again, as workloads of who asks for it; the new ones."""
        mine = get_executor()
        mine.ensure_started()
        submitted: list[Workload] = []
        refused: Counter[str] = Counter()
        for workload in workloads:
            try:
                again = mine.submit(lifecycle.resubmission(workload, _user_id(request)))
            except InvalidRequest as error:
                refused[error.reason] += 1
            except VulcanError as error:
                refused[str(error)] += 1
            else:
                self.log_change(request, workload, f"Run again as {again.pk}.")
                self.log_addition(request, again, f"Submitted as {workload.pk} once more.")
                submitted.append(again)
        self._say(request, "submitted again", messages.SUCCESS, submitted)
        for reason, count in refused.items():
            said = f"{count} could not be run again. {reason}"
            self.message_user(request, said, messages.ERROR)
        return submitted

    def _kill(self, request: HttpRequest, workloads: Sequence[Workload]) -> list[Workload]:
        """Ask for the end of all, then wait for it, for as long as for one."""
        asked = []
        for workload in workloads:
            try:
                lifecycle.kill(workload, wait_s=0)
            except WorkloadFinished:
                continue
            self.log_change(request, workload, "Asked to be killed.")
            asked.append(workload)
        until = time.monotonic() + lifecycle.KILL_WAIT_S
        for workload in asked:
            lifecycle.wait(workload, until - time.monotonic())
        killed = [one for one in workloads if one in asked and one.status == Status.KILLED]
        waiting = [one for one in workloads if not one.ended]
        others = [one for one in workloads if one not in killed and one not in waiting]
        self._say(request, "killed", messages.SUCCESS, killed)
        self._say(request, "asked to end, and will", messages.WARNING, waiting)
        self._say(request, "had ended before", messages.WARNING, others)
        return []

    def _say(
        self, request: HttpRequest, what: str, level: int, workloads: Sequence[Workload]
    ) -> None:
        """How many, and which, as far as a message has room."""
        if not workloads:
            return
        links = ((self._page_of(one), one.pk) for one in workloads[:MAX_NAMED])
        said = format_html(
            "{} {}: {}{}",
            len(workloads),
            what,
            format_html_join(", ", '<a href="{}">{}</a>', links),
            ", …" if len(workloads) > MAX_NAMED else "",
        )
        self.message_user(request, said, level)

    def _page_of(self, workload: Workload) -> str:
        name = f"{self.opts.app_label}_{self.opts.model_name}_change"
        return reverse(f"{self.admin_site.name}:{name}", args=[workload.pk])

    def _log(self, request: HttpRequest, message: str, workloads: Sequence[Workload]) -> None:
        LogEntry.objects.log_actions(
            user_id=_user_id(request),
            queryset=workloads,
            action_flag=CHANGE,
            change_message=message,
        )


def _user_id(request: HttpRequest) -> int:
    """Whoever comes to a page of the admin has signed in."""
    assert request.user.pk is not None
    return request.user.pk
