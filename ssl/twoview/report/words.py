"""Numbers as people read them."""

from collections.abc import Callable, Sequence

NONE = "–"  # where there is no number
NBSP = "\N{NO-BREAK SPACE}"


def number(x: float | None, digits: int) -> str:
    """With a minus sign that is one, and none before zero."""
    if x is None:
        return NONE
    return f"{round(x, digits) + 0.0:,.{digits}f}".replace("-", "−")


def percent(share: float | None, digits: int = 1, unit: str = "") -> str:
    """A share in percent; a `unit` (%, points) stays on its line."""
    if share is None:
        return NONE
    return number(share * 100, digits).replace(",", "") + (NBSP + unit if unit else "")


def in_points(x: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{x * 100:+.1f}".replace("-", "−") if round(x, 3) else "0.0"


def span(limits: Sequence[float] | None, text: Callable[[float], str] = percent) -> str:
    """`[low, high]` on one line, each written by `text`; nothing where the limits are unknown."""
    return f"[{text(limits[0])},{NBSP}{text(limits[1])}]" if limits else ""


def p_value(p: float | None) -> str:
    """`0.012`, or `< 0.001`."""
    return NONE if p is None else f"<{NBSP}0.001" if p < 0.001 else f"{p:.2g}"


def p_words(p: float) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    text = p_value(p)
    return f"p{NBSP}{text}" if text.startswith("<") else f"p{NBSP}={NBSP}{text}"


def legible(text: str) -> str:
    """Text that UTF-8 can hold, with ? for what it cannot: the name of a file may be of any bytes."""
    return text.encode("utf-8", "replace").decode()


def clock(seconds: float) -> str:
    """A duration as m:ss, or h:mm:ss from an hour on."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def duration(seconds: float) -> str:
    """A duration with its units: `34 s`, `4 min 34 s`, `34 min`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes // 60} h {minutes % 60} min".removeprefix("0 h ")
