"""The one exception that is meant for the person at the keyboard, and lists in its messages."""

from collections.abc import Sequence


class UserError(Exception):
    """Something that the user can mend. The message names the thing and the remedy.

    Commands print it without a traceback and exit with code 1; see `twoview.cli.entry`.
    """


def listed(names: Sequence[str], most: int = 6) -> str:
    """`a, b and c`; of more than `most` names, the first ones and how many more there are."""
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most else list(names)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
