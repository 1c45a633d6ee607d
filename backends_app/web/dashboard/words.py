"""Formatting of figures for the dashboard."""

from ...workloads import ExitReason


def count(number: int) -> str:
    return f"{number:,}"


def si(number: float) -> str:
    """Format a number for an axis, with the SI suffix k or M."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


def percent(value: float | None) -> str:
    """Format a share (0 to 1) in percent; only exactly all is "100 %" and only zero is "0 %"."""
    if value is None:
        return "–"
    figure = 100 * value
    if 0 < figure < 0.1:
        return "under 0.1 %"
    if 99.9 < figure < 100:
        return "over 99.9 %"
    return f"{figure:.1f}".removesuffix(".0") + " %"


def pluralize(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def exit_reason(reason: str, exit_code: int | None = None) -> str:
    """Describe why a workload failed."""
    if reason != ExitReason.EXITED:
        return reason.replace("_", " ")
    return "exit code not 0" if exit_code is None else f"exit code {exit_code}"
