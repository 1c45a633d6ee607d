"""Counts and run times of ended workloads by backend, over a window divided into time steps.

The database counts; no workload is fetched. Ended workloads do not change, so a finished step is
queried once; each refresh after that reads only the last step or two.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import Case, Count, F, Func, IntegerField, Value, When

from ...models import Workload
from ...utils.figures import percentile
from ...workloads import Status

REFRESH_S = 2
"""Windows end at multiples of this, so that all processes show the same figures."""
SETTLED_S = 60
"""How long after the end of a step another node may still record a workload that ended in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A selectable period: `steps` steps up to now, the last of them unfinished.

    `label` follows "in the last". Axis labels use the strftime format `tick`, one every `tick_s`.
    """

    key: str
    label: str
    step_s: int
    step_label: str
    steps: int
    tick_s: int
    tick: str

    def first_step(self, until: datetime) -> int:
        """Return the number of the first step; steps are counted from 1970."""
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
class Stats:
    """Counts of the workloads that ended on one backend within a period.

    `failures` counts by exit reason. `run_times` counts completed workloads by run time, in
    milliseconds to three digits. Percentiles are cached, so add nothing after the first query.
    """

    completed: int = 0
    killed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    run_times: Counter[int] = field(default_factory=Counter)
    _percentiles: dict[float, int | None] = field(default_factory=dict, repr=False)

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.killed

    @property
    def success(self) -> float | None:
        """Return completed / (completed + failed), or None; killed workloads do not count."""
        finished = self.completed + self.failed
        return self.completed / finished if finished else None

    def run_time(self, share: float) -> int | None:
        """Return the run time in milliseconds that the fastest `share` (0 to 1) did not exceed."""
        if share not in self._percentiles:
            times = self.run_times
            self._percentiles[share] = percentile(times, 100 * share) if times else None
        return self._percentiles[share]

    def add(self, status: str, exit_reason: str, run_time: int | None, count: int) -> None:
        if status == Status.COMPLETED:
            self.completed += count
            self.run_times[run_time or 0] += count
        elif status == Status.KILLED:
            self.killed += count
        else:
            self.failures[exit_reason] += count

    @classmethod
    def total(cls, parts: Iterable["Stats"]) -> "Stats":
        total = cls()
        for part in parts:
            total.completed += part.completed
            total.killed += part.killed
            total.failures.update(part.failures)
            total.run_times.update(part.run_times)
        return total


NO_STATS = Stats()


@dataclass(frozen=True, eq=False)
class WindowStats:
    """The statistics of a window that ends at `until`: one mapping by backend for each step."""

    window: Window
    until: datetime
    first: int
    steps: Sequence[Mapping[str, Stats]]

    @property
    def since(self) -> datetime:
        return self.window.begin(self.first)

    @property
    def backends(self) -> list[str]:
        """Return the names of the backends on which a workload ended, sorted."""
        return sorted({name for step in self.steps for name in step})

    def for_backend(self, backend: str) -> list[Stats]:
        """Return the statistics of a backend, one for each step."""
        return [step.get(backend, NO_STATS) for step in self.steps]

    def begin(self, number: int) -> datetime:
        """Return the start of the step with this index in `steps`."""
        return self.window.begin(self.first + number)


class History:
    """A cache of window statistics for this process.

    One thread at a time queries the database. The others use the previous result if there is one,
    and otherwise wait.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, WindowStats] = {}

    def window_stats(self, window: Window) -> WindowStats:
        now = self._clock()
        until = now.replace(second=now.second // REFRESH_S * REFRESH_S, microsecond=0)
        cached = self._last.get(window.key)
        if cached is not None and cached.until == until:
            return cached
        if not self._lock.acquire(blocking=cached is None):
            assert cached is not None
            return cached
        try:
            cached = self._last.get(window.key)
            if cached is None or cached.until != until:
                cached = self._last[window.key] = _extend(cached, window, until)
            return cached
        finally:
            self._lock.release()


def _extend(last: WindowStats | None, window: Window, until: datetime) -> WindowStats:
    """Keep the settled steps of the previous result and query the rest."""
    first = begin = window.first_step(until)
    settled_steps: Sequence[Mapping[str, Stats]] = ()
    if last is not None and last.until <= until:
        settled = int((last.until - timedelta(seconds=SETTLED_S)).timestamp()) // window.step_s
        begin = max(first, settled)
        settled_steps = last.steps[first - last.first : begin - last.first]
    fresh: list[dict[str, Stats]] = [{} for _ in range(first + window.steps - begin)]
    for step, backend, status, exit_reason, run_time, count in _count(window, begin, until):
        stats = fresh[step - begin].setdefault(backend, Stats())
        stats.add(status, exit_reason, run_time, count)
    return WindowStats(window, until, first, (*settled_steps, *fresh))


def _count(window: Window, begin: int, until: datetime) -> Iterable[Any]:
    ended = Workload.objects.filter(finished_at__gte=window.begin(begin), finished_at__lt=until)
    step = Epoch("finished_at") / Value(window.step_s)
    groups = ended.annotate(step=step, run_time=_round_to_three_digits("duration_ms")).order_by()
    columns = ("step", "isolation_used", "status", "exit_reason", "run_time")
    return groups.values_list(*columns).annotate(count=Count("*"))


def _round_to_three_digits(name: str) -> Case:
    """Round down to three digits, which bounds the number of distinct values to a few thousand."""
    value = F(name)
    return Case(
        When(**{f"{name}__lt": 1_000}, then=value),
        When(**{f"{name}__lt": 10_000}, then=value / 10 * 10),
        When(**{f"{name}__lt": 100_000}, then=value / 100 * 100),
        default=value / 1_000 * 1_000,
        output_field=IntegerField(),
    )


class Epoch(Func):
    """A time as whole seconds since 1970."""

    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        # Cut off the fraction of the seconds, which SQLite would round.
        template = "CAST(strftime('%%%%s', substr(%(expressions)s, 1, 19)) AS INTEGER)"
        return self.as_sql(compiler, connection, template=template, **extra)

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "FLOOR(EXTRACT(EPOCH FROM %(expressions)s))::bigint"
        return self.as_sql(compiler, connection, template=template, **extra)


history = History()
"""The history of this process's database."""
