"""The changelist of workloads. Every query uses an index, so it stays fast with a million rows."""

import itertools
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.core.paginator import Paginator
from django.db.models import Exists, Q, QuerySet
from django.http import HttpRequest
from django.utils import formats, timezone
from django.utils.functional import cached_property

from ..models import LARGE_FIELDS, Workload
from ..registry import registry
from ..routing import RUNTIMES

MAX_COUNTED = 10_000
FIELD = "created_at"
PARTS = ("year", "month", "day")
TITLES = ("Y", "YEAR_MONTH_FORMAT", "MONTH_DAY_FORMAT")
MAX_WORDS = 5
MAX_OWNERS = 100
HEX = frozenset("0123456789abcdef")
LOOKUPS = frozenset(
    {
        *("status__exact", "exit_reason__exact", "runtime", "backend"),
        *("created_at__gte", "created_at__lt"),
        *("created_at__year", "created_at__month", "created_at__day"),
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
    """A changelist without large columns, and with an indexed date hierarchy.

    Django's own date hierarchy computes a date for each row. Here one query checks for each year,
    month or day between the first row and the last whether it has a row.
    """

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: list[str | None] | None = None
    ) -> QuerySet[Workload]:
        try:
            rows = super().get_queryset(request, exclude_parameters)
        except (ValueError, OverflowError) as error:  # the year after 9999
            raise IncorrectLookupParameters(error) from error
        return rows.defer(*LARGE_FIELDS, "candidates", "error")

    def dates(self) -> dict[str, Any]:
        """Return the context of Django's date hierarchy template."""
        chosen, first, last = self._chosen(), self._end(FIELD), self._end(f"-{FIELD}")
        if not chosen and first and last:  # skip levels with only one choice
            pairs = zip(_parts(first)[:2], _parts(last)[:2], strict=True)
            chosen = tuple(
                a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
            )
        if len(chosen) == len(PARTS):
            choices = [{"title": _title(chosen)}]
        elif first and last:
            choices = [self._choice(period) for period in self._within(chosen, first, last)]
        else:
            choices = []
        return {"back": self._choice(chosen[:-1]) if chosen else None, "choices": choices}

    def _chosen(self) -> tuple[int, ...]:
        """Return the selected year, month and day, as far as they are selected."""
        names = (f"{FIELD}__{part}" for part in PARTS)
        selected = itertools.takewhile(self.params.get, names)
        return tuple(int(self.params[name]) for name in selected)

    def _end(self, ordering: str) -> datetime | None:
        """Return the creation time of the first row in this order."""
        created_at = self.queryset.order_by(ordering).values_list(FIELD, flat=True).first()
        return None if created_at is None else timezone.localtime(created_at)

    def _within(
        self, chosen: tuple[int, ...], first: datetime, last: datetime
    ) -> list[tuple[int, ...]]:
        """Return the years, or the months or days of the chosen period, that have a row."""
        level = len(chosen)
        numbers = range(_parts(first)[level], _parts(last)[level] + 1)
        periods = [(*chosen, number) for number in numbers]
        before = [Q(**{f"{FIELD}__lt": _begin(one)}) for one in periods[1:]] + [Q()]
        conditions = [
            # The order matters: SQLite starts its index scan at the first of two bounds.
            Exists(Workload.objects.filter(end, **{f"{FIELD}__gte": _begin(one)}) & self.queryset)
            for one, end in zip(periods, before, strict=True)
        ]
        any_row = self.queryset.filter(**{FIELD: first}).order_by()
        for has_rows in any_row.values_list(*conditions)[:1]:
            return list(itertools.compress(periods, has_rows))
        return []  # the row was deleted meanwhile

    def _choice(self, period: tuple[int, ...]) -> dict[str, str]:
        params = {f"{FIELD}__{part}": number for part, number in zip(PARTS, period, strict=False)}
        return {"link": self.get_query_string(params, [f"{FIELD}__"]), "title": _title(period)}


def _parts(moment: datetime) -> tuple[int, int, int]:
    return (moment.year, moment.month, moment.day)


def _begin(period: tuple[int, ...]) -> datetime:
    year, month, day = (*period, 1, 1)[:3]
    return timezone.make_aware(datetime(year, month, day))


def _title(period: tuple[int, ...]) -> str:
    if not period:
        return "All dates"
    return formats.date_format(_begin(period), TITLES[len(period) - 1])
