"""Compare a benchmark with an earlier one: the change of each figure, and regressions."""

from collections.abc import Sequence
from dataclasses import dataclass

from .results import MODES, Figures, Results

THRESHOLD = 0.2
"""Default threshold, as a share, above which a change for the worse is marked."""

TIMES = ("p50_ms", "p95_ms")
FIGURES = (*TIMES, "per_s", "failures")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One figure before and now. `share` is the relative change, or None if undefined."""

    backend: str
    mode: str
    figure: str
    before: float | None
    now: float | None
    share: float | None
    worse: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All changes, notes on what could not be compared, and `lost`: backends that broke."""

    threshold: float
    changes: Sequence[Change]
    notes: Sequence[str]
    lost: Sequence[str]

    @property
    def regressions(self) -> Sequence[Change]:
        return [change for change in self.changes if change.worse]

    @property
    def worse(self) -> bool:
        return bool(self.lost or self.regressions)


def compare(before: Results, now: Results, threshold: float = THRESHOLD) -> Comparison:
    """Compare `now` with `before`; `threshold` is a share, 0.2 for 20 %."""
    changes: list[Change] = []
    notes: list[str] = []
    for one in now.measured:
        earlier = before.find(one.name)
        if earlier is None:
            notes.append(f"{one.name} was not measured before")
            continue
        if (earlier.runtime, earlier.image) != (one.runtime, one.image):
            was, is_now = earlier.image or earlier.runtime, one.image or one.runtime
            notes.append(f"{one.name} ran {was} before and {is_now} now, so it is not compared")
            continue
        for mode in MODES:
            if mode in one.modes and mode in earlier.modes:
                changes += _changes(one.name, mode, earlier.modes[mode], one.modes[mode], threshold)
    broken = {one.name for one in now.left_out if one.broken}
    lost = [one.name for one in before.measured if one.name in broken]
    if before.processors != now.processors:
        notes.append(f"the host has {now.processors} processors now, {before.processors} before")
    return Comparison(threshold=threshold, changes=changes, notes=notes, lost=lost)


def _changes(
    backend: str, mode: str, before: Figures, now: Figures, threshold: float
) -> list[Change]:
    found = []
    for figure in FIGURES:
        was, is_now = getattr(before, figure), getattr(now, figure)
        share = is_now / was - 1 if was and is_now is not None else None
        if figure == "failures":
            worse = now.failures / now.runs > before.failures / before.runs
        elif was is None or is_now is None:
            worse = False  # every run failed, which the failures show
        elif figure in TIMES:
            worse = is_now > was * (1 + threshold)
        else:
            worse = was > is_now * (1 + threshold)
        found.append(
            Change(
                backend=backend,
                mode=mode,
                figure=figure,
                before=was,
                now=is_now,
                share=share,
                worse=worse,
            )
        )
    return found
