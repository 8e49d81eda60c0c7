"""Tables of what was found, a row for each image with the name of its file: CSV, and Parquet where pyarrow is."""

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twoview.report.words import legible
from twoview.run.atomic import save

Columns = Mapping[str, Sequence[Any]]  # of one length; None where a row has no value


def write(stem: Path, columns: Columns) -> list[Path]:
    """Writes `<stem>.csv`, and `<stem>.parquet` where pyarrow is installed; returns both."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(map(_cell, values) for values in columns.values()), strict=True))
    written = [stem.with_suffix(".csv")]
    save(written[0], text.getvalue())
    if importlib.util.find_spec("pyarrow") is not None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = io.BytesIO()
        pq.write_table(pa.table({name: list(map(_valid, values)) for name, values in columns.items()}), file)
        written.append(stem.with_suffix(".parquet"))
        save(written[-1], file.getvalue())
    return written


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _valid(value: Any) -> Any:
    return legible(value) if isinstance(value, str) else value
