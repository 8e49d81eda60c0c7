"""Classifies by the nearest neighbours in the frozen encoder of a run:  python scripts/knn.py ckpt=<run>/last.ckpt"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.commands.probe import knn_command

    return knn_command(config)


if __name__ == "__main__":
    run_command("knn", task)
