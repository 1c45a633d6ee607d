"""The list of workloads, as fast with a million rows as with ten: nothing looks at all of them."""

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
"""By what the list may be narrowed: there is an index for each."""


class Many(int):
    """A number of which is only known that there are more: `10000+`."""

    def __str__(self) -> str:
        return f"{int(self)}+"


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # no generic while it runs
    """Counts and turns pages up to a bound; `bounded` says that there is more."""

    @cached_property
    def count(self) -> int:
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]  # as the admin has it
        found = rows.order_by()[: MAX_COUNTED + 1].count()
        return found if found <= MAX_COUNTED else Many(MAX_COUNTED)

    @property
    def bounded(self) -> bool:
        return isinstance(self.count, Many)


class RuntimeFilter(admin.SimpleListFilter):
    """The runtimes that some backend has; to ask the rows would take long."""

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
    """The backends that are registered."""

    title = "backend"
    parameter_name = "backend"
    field = "isolation_used"

    def names(self) -> Iterable[str]:
        return registry


def meant(search: str) -> Q:
    """The rows in which each of these words is found."""
    return Q(*map(_meant_by, search.split()[:MAX_WORDS]))


def _meant_by(word: str) -> Q:
    """Rows that somebody may mean with this word, in ways for which there is an index."""
    users = get_user_model()
    owners = users._default_manager.filter(**{f"{users.USERNAME_FIELD}__icontains": word})
    found = Q(node=word) | Q(owner__in=list(owners.values_list("pk", flat=True)[:MAX_OWNERS]))
    if set(word) <= HEX:
        found |= Q(pk__gte=word, pk__lt=f"{word}g")  # what begins with it: no digit follows f
    return found


class WorkloadChangeList(ChangeList):
    """Without the large columns, and with dates that are found by an index.

    Django's own hierarchy of dates computes one for each row. Here one query asks of each year,
    month or day between the first row and the last whether there is a row in it.
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
        """What the template of Django's hierarchy shows."""
        chosen, first, last = self._chosen(), self._end(FIELD), self._end(f"-{FIELD}")
        if not chosen and first and last:  # begin where there is something to choose
            pairs = zip(_parts(first)[:2], _parts(last)[:2], strict=True)
            chosen = tuple(
                a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
            )
        if len(chosen) == len(PARTS):
            choices = [{"title": _title(chosen)}]
        elif first and last:
            choices = [self._choice(one) for one in self._within(chosen, first, last)]
        else:
            choices = []
        return {"back": self._choice(chosen[:-1]) if chosen else None, "choices": choices}

    def _chosen(self) -> tuple[int, ...]:
        """The year, month and day that are asked for, as far as they are."""
        names = (f"{FIELD}__{part}" for part in PARTS)
        asked = itertools.takewhile(self.params.get, names)
        return tuple(int(self.params[name]) for name in asked)

    def _end(self, ordering: str) -> datetime | None:
        """When the first row in this order was created."""
        found = self.queryset.order_by(ordering).values_list(FIELD, flat=True).first()
        return None if found is None else timezone.localtime(found)

    def _within(
        self, chosen: tuple[int, ...], first: datetime, last: datetime
    ) -> list[tuple[int, ...]]:
        """The years, or the months or days of what is chosen, that have a row."""
        level = len(chosen)
        numbers = range(_parts(first)[level], _parts(last)[level] + 1)
        periods = [(*chosen, number) for number in numbers]
        before = [Q(**{f"{FIELD}__lt": _begin(one)}) for one in periods[1:]] + [Q()]
        asked = [
            # In this order: of two bounds SQLite takes the first one to begin at.
            Exists(Workload.objects.filter(end, **{f"{FIELD}__gte": _begin(one)}) & self.queryset)
            for one, end in zip(periods, before, strict=True)
        ]
        any_row = self.queryset.filter(**{FIELD: first}).order_by()
        for there in any_row.values_list(*asked)[:1]:
            return list(itertools.compress(periods, there))
        return []  # it has been deleted meanwhile

    def _choice(self, period: tuple[int, ...]) -> dict[str, str]:
        asked = {f"{FIELD}__{part}": number for part, number in zip(PARTS, period, strict=False)}
        return {"link": self.get_query_string(asked, [f"{FIELD}__"]), "title": _title(period)}


def _parts(moment: datetime) -> tuple[int, int, int]:
    return (moment.year, moment.month, moment.day)


def _begin(period: tuple[int, ...]) -> datetime:
    year, month, day = (*period, 1, 1)[:3]
    return timezone.make_aware(datetime(year, month, day))


def _title(period: tuple[int, ...]) -> str:
    if not period:
        return "All dates"
    return formats.date_format(_begin(period), TITLES[len(period) - 1])
