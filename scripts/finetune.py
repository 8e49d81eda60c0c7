"""Trains a run's encoder and a classifier with labels:  python scripts/finetune.py ckpt=<run>/last.ckpt"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.commands.finetune import finetune_command

    return finetune_command(config)


if __name__ == "__main__":
    run_command("finetune", task)
