"""Writes a run's encoder as a file for other software:  python scripts/export.py ckpt=<run>/last.ckpt format=onnx"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.commands.export import export_command

    return export_command(config)


if __name__ == "__main__":
    run_command("export", task)
