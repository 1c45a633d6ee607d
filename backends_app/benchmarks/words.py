"""How figures are written, for a terminal and for a page."""


def figure(value: float | None) -> str:
    """To three digits, or whole."""
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def ratio(value: float | None) -> str:
    return "–" if value is None else f"{figure(value)}×"


def share(value: float | None) -> str:
    """By how much something has changed."""
    return "" if value is None else f"{round(100 * value):+,d} %"
