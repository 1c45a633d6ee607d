"""How many workloads ended, how, and how long they took: by backend, over a time cut into steps.

The database counts; no workload is fetched. What has ended does not change, so a step that is over
is asked for once, and after that each refresh looks at the last step or two.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import Case, Count, F, Func, IntegerField, Value, When

from ..models import Workload
from ..workloads import Status

REFRESH_S = 2
"""All processes count up to the same moments, so that they tell the same story."""
SETTLED_S = 60
"""How long after a step's end another node may still record an end that was in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A time that people can choose: so many steps up to now, the last of which is not over.

    `label` follows "in the last"; `tick` is how times on its axis are written, one in `tick_s`.
    """

    key: str
    label: str
    step_s: int
    step_label: str
    steps: int
    tick_s: int
    tick: str

    def first_step(self, until: datetime) -> int:
        """Steps have numbers: how many of them there were since 1970."""
        return int(until.timestamp()) // self.step_s - self.steps + 1

    def begin(self, step: int) -> datetime:
        return datetime.fromtimestamp(step * self.step_s, UTC)


WINDOWS = {
    window.key: window
    for window in (
        Window(
            key="hour",
            label="hour",
            step_s=120,
            step_label="2 minutes",
            steps=30,
            tick_s=1200,
            tick="%H:%M",
        ),
        Window(
            key="day",
            label="day",
            step_s=3600,
            step_label="hour",
            steps=24,
            tick_s=6 * 3600,
            tick="%H:%M",
        ),
        Window(
            key="week",
            label="week",
            step_s=6 * 3600,
            step_label="6 hours",
            steps=28,
            tick_s=24 * 3600,
            tick="%a",
        ),
    )
}


@dataclass(slots=True)
class Tally:
    """What ended on one backend within some time.

    `failures` counts them by exit reason. `run_times` counts the completed by how long they ran, in
    milliseconds to three digits. Nothing is added after the first question.
    """

    completed: int = 0
    killed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    run_times: Counter[int] = field(default_factory=Counter)
    _found: dict[float, int | None] = field(default_factory=dict, repr=False)

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.killed

    @property
    def success(self) -> float | None:
        """The share of the completed among those that nobody killed."""
        judged = self.completed + self.failed
        return self.completed / judged if judged else None

    def run_time(self, share: float) -> int | None:
        """How long in milliseconds the quickest `share` of the completed took at the most."""
        if share not in self._found:
            self._found[share] = self._ranked(math.ceil(share * self.completed))
        return self._found[share]

    def _ranked(self, rank: int) -> int | None:
        for run_time in sorted(self.run_times):
            rank -= self.run_times[run_time]
            if rank <= 0:
                return run_time
        return None

    def add(self, status: str, exit_reason: str, run_time: int | None, count: int) -> None:
        if status == Status.COMPLETED:
            self.completed += count
            self.run_times[run_time or 0] += count
        elif status == Status.KILLED:
            self.killed += count
        else:
            self.failures[exit_reason] += count

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        found = cls()
        for tally in tallies:
            found.completed += tally.completed
            found.killed += tally.killed
            found.failures.update(tally.failures)
            found.run_times.update(tally.run_times)
        return found


NOTHING = Tally()


@dataclass(frozen=True, eq=False)
class Past:
    """A window up to a moment: for each of its steps the tallies of the backends."""

    window: Window
    until: datetime
    first: int
    steps: Sequence[Mapping[str, Tally]]

    @property
    def since(self) -> datetime:
        return self.window.begin(self.first)

    @property
    def backends(self) -> list[str]:
        """Where something ended, by name."""
        return sorted({name for step in self.steps for name in step})

    def of(self, backend: str) -> list[Tally]:
        """One tally for each step."""
        return [step.get(backend, NOTHING) for step in self.steps]

    def begin(self, number: int) -> datetime:
        """When the step with this number in `steps` began."""
        return self.window.begin(self.first + number)


class History:
    """The past as this process knows it.

    One thread at a time asks the database for more; the others make do with what there was, if
    there was anything.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, Past] = {}

    def over(self, window: Window) -> Past:
        now = self._clock()
        until = now.replace(second=now.second // REFRESH_S * REFRESH_S, microsecond=0)
        known = self._last.get(window.key)
        if known is not None and known.until == until:
            return known
        if not self._lock.acquire(blocking=known is None):
            assert known is not None
            return known
        try:
            known = self._last.get(window.key)
            if known is None or known.until != until:
                known = self._last[window.key] = _continued(known, window, until)
            return known
        finally:
            self._lock.release()


def _continued(last: Past | None, window: Window, until: datetime) -> Past:
    """What is settled is taken over from the last answer; the rest is asked for."""
    first = begin = window.first_step(until)
    known: Sequence[Mapping[str, Tally]] = ()
    if last is not None and last.until <= until:
        settled = int((last.until - timedelta(seconds=SETTLED_S)).timestamp()) // window.step_s
        begin = max(first, settled)
        known = last.steps[first - last.first : begin - last.first]
    fresh: list[dict[str, Tally]] = [{} for _ in range(first + window.steps - begin)]
    for step, backend, status, exit_reason, run_time, count in _count(window, begin, until):
        tally = fresh[step - begin].setdefault(backend, Tally())
        tally.add(status, exit_reason, run_time, count)
    return Past(window, until, first, (*known, *fresh))


def _count(window: Window, begin: int, until: datetime) -> Iterable[Any]:
    ended = Workload.objects.filter(finished_at__gte=window.begin(begin), finished_at__lt=until)
    step = Epoch("finished_at") / Value(window.step_s)
    alike = ended.annotate(step=step, run_time=_three_digits("duration_ms")).order_by()
    columns = ("step", "isolation_used", "status", "exit_reason", "run_time")
    return alike.values_list(*columns).annotate(count=Count("*"))


def _three_digits(name: str) -> Case:
    """So that there cannot be more different ones than a few thousand."""
    value = F(name)
    return Case(
        When(**{f"{name}__lt": 1_000}, then=value),
        When(**{f"{name}__lt": 10_000}, then=value / 10 * 10),
        When(**{f"{name}__lt": 100_000}, then=value / 100 * 100),
        default=value / 1_000 * 1_000,
        output_field=IntegerField(),
    )


class Epoch(Func):
    """The whole seconds since 1970 of a time."""

    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        # Without what follows the seconds: SQLite would round it.
        template = "CAST(strftime('%%%%s', substr(%(expressions)s, 1, 19)) AS INTEGER)"
        return self.as_sql(compiler, connection, template=template, **extra)

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "FLOOR(EXTRACT(EPOCH FROM %(expressions)s))::bigint"
        return self.as_sql(compiler, connection, template=template, **extra)


history = History()
"""The past of this process's database."""
