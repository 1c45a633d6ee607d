"""How figures are written, and what strangers wrote is shown."""

from ..workloads import ExitReason

MAX_SAID_CHARS = 200


def count(number: int) -> str:
    return f"{number:,}"


def short(number: float) -> str:
    """For an axis."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


def share(value: float | None) -> str:
    """In percent; only what is all is 100, and only what is nothing is 0."""
    if value is None:
        return "–"
    percent = 100 * value
    if 0 < percent < 0.1:
        return "under 0.1 %"
    if 99.9 < percent < 100:
        return "over 99.9 %"
    return f"{percent:.1f}".removesuffix(".0") + " %"


def duration(ms: int | None) -> str:
    """In the unit that suits it, to three digits."""
    if ms is None:
        return "–"
    if ms < 1_000:
        return f"{ms} ms"
    return f"{ms / 1_000:.3g} s" if ms < 100_000 else f"{ms // 1_000:,} s"


def times(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def exit_reason(reason: str, exit_code: int | None = None) -> str:
    """Why a workload failed, in words."""
    if reason != ExitReason.EXITED:
        return reason.replace("_", " ")
    return "exit code not 0" if exit_code is None else f"exit code {exit_code}"


def said(text: str) -> str:
    """One line of bounded length that cannot change how what stands around it is read."""
    cut = text[: 4 * MAX_SAID_CHARS]
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in cut).split())
    if len(line) > MAX_SAID_CHARS or len(cut) < len(text):
        return f"{line[: MAX_SAID_CHARS - 1]}…"
    return line
