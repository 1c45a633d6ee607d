"""The changelist of workloads. Every query uses an index, so it stays fast with a million rows."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

from ..models import LARGE_FIELDS, Workload
from ..registry import registry
from ..routing import RUNTIMES

MAX_COUNTED = 10_000
MAX_WORDS = 5
MAX_OWNERS = 100
HEX = frozenset("0123456789abcdef")
LOOKUPS = frozenset(
    {
        *("status__exact", "exit_reason__exact", "runtime", "backend"),
        *("created_at__gte", "created_at__lt"),
    }
)
"""The lookups that may filter the list; each has an index."""


class TruncatedCount(int):
    """A count that stopped at a bound; printed as `10000+`."""

    def __str__(self) -> str:
        return f"{int(self)}+"


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # no generic while it runs
    """A paginator that counts at most MAX_COUNTED rows; `is_truncated` if there are more."""

    @cached_property
    def count(self) -> int:
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]  # always one here
        count = rows.order_by()[: MAX_COUNTED + 1].count()
        return count if count <= MAX_COUNTED else TruncatedCount(MAX_COUNTED)

    @property
    def is_truncated(self) -> bool:
        return isinstance(self.count, TruncatedCount)


class RuntimeFilter(admin.SimpleListFilter):
    """Filter by the runtimes of the registered backends; querying the rows would take long."""

    title = "runtime"
    parameter_name = "runtime"
    field = "runtime"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in self.names()]

    def names(self) -> Iterable[str]:
        served = {
            name
            for entry in registry.snapshot.entries.values()
            for name in entry.capabilities.supported_runtimes
        }
        return [*RUNTIMES, *sorted(served - {*RUNTIMES})]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Workload]
    ) -> QuerySet[Workload] | None:
        value = self.value()
        return None if value is None else queryset.filter(**{self.field: value})


class BackendFilter(RuntimeFilter):
    """Filter by the registered backends."""

    title = "backend"
    parameter_name = "backend"
    field = "isolation_used"

    def names(self) -> Iterable[str]:
        return registry


def search_q(search: str) -> Q:
    """Return the condition that each of the first MAX_WORDS words matches."""
    return Q(*map(_word_q, search.split()[:MAX_WORDS]))


def _word_q(word: str) -> Q:
    """Match an id prefix, a node name or part of an owner's name; each uses an index."""
    users = get_user_model()
    owners = users._default_manager.filter(**{f"{users.USERNAME_FIELD}__icontains": word})
    query = Q(node=word) | Q(owner__in=list(owners.values_list("pk", flat=True)[:MAX_OWNERS]))
    if set(word) <= HEX:
        query |= Q(pk__gte=word, pk__lt=f"{word}g")  # ids with this prefix: f is the last digit
    return query


class WorkloadChangeList(ChangeList):
    """A changelist that does not read the large columns."""

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: list[str | None] | None = None
    ) -> QuerySet[Workload]:
        rows = super().get_queryset(request, exclude_parameters)
        return rows.defer(*LARGE_FIELDS, "candidates", "error")
