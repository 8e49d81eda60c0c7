"""All that the encoder of a run is worth, on one page:  python scripts/evaluate.py ckpt=<run>/last.ckpt"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,report]'  (or: make setup)"
    )


def task(config):
    from twoview.commands.evaluate import evaluate_command

    return evaluate_command(config)


if __name__ == "__main__":
    run_command("evaluate", task)
