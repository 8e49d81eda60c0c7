"""`twoview runs`."""

from collections.abc import Sequence


def runs_command(typed: Sequence[str]) -> int:
    from twoview.run.registry import runs_command

    return runs_command(typed)
