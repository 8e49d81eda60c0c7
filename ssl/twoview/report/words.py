"""Numbers as people read them."""

from collections.abc import Sequence


def clock(seconds: float) -> str:
    """A duration as m:ss, or h:mm:ss from an hour on."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


NONE = "–"
NBSP = "\N{NO-BREAK SPACE}"


def percent(share: float | None, digits: int = 1, unit: str = "") -> str:
    """A share in percent; `unit` (%, points) stays on its line."""
    if share is None:
        return NONE
    return f"{share * 100:.{digits}f}".replace("-", "−") + (NBSP + unit if unit else "")


def in_points(x: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{x * 100:+.1f}".replace("-", "−") if round(x, 3) else "0.0"


def listed(names: Sequence[str], most: int = 6) -> str:
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most else list(names)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes // 60} h {minutes % 60} min".removeprefix("0 h ")
