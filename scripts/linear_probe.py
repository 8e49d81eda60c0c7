"""Trains a linear classifier on the frozen encoder of a run:  python scripts/linear_probe.py ckpt=<run>/last.ckpt"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.commands.probe import linear_command

    return linear_command(config)


if __name__ == "__main__":
    run_command("linear_probe", task)
