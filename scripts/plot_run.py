"""Draws the curves of a run to curves.png:  python scripts/plot_run.py run=runs/<name>/<date>"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.report.curves import plot_command

    return plot_command(config)


if __name__ == "__main__":
    run_command("plot_run", task)
