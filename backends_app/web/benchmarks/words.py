"""Formatting of figures, for terminals and pages."""


def figure(value: float | None) -> str:
    """Format to three significant digits, or as a whole number from 1,000 on."""
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def ratio(value: float | None) -> str:
    return "–" if value is None else f"{figure(value)}×"


def percent_change(value: float | None) -> str:
    """Format a relative change in percent, with its sign."""
    return "" if value is None else f"{round(100 * value):+,d} %"
