"""Writes the features of a run's encoder to a file:  python scripts/embed.py ckpt=<run>/last.ckpt format=parquet"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.commands.embed import embed_command

    return embed_command(config)


if __name__ == "__main__":
    run_command("embed", task)
