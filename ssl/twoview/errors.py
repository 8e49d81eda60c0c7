"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something that the user can mend. The message names the thing and the remedy.

    Commands print it without a traceback and exit with code 1; see `twoview.cli.entry`.
    """
