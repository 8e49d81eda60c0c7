"""Features as files: .npz, .safetensors and .parquet.

Rows are written batch by batch, so memory does not grow with the data set. Their number is known in advance, because
an .npz member and a .safetensors file state it at their beginning.
"""

import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.evaluate.features import laid_out
from twoview.report.progress import tracked
from twoview.report.words import legible

log = logging.getLogger(__name__)

Columns = dict[str, np.ndarray]

Blocks = Iterable[np.ndarray]


def dim_of(network: nn.Module, images: SampleSet) -> int:
    """D of the features, from one sample: what does not fit is reported before a file is begun."""
    device = next(network.parameters()).device
    try:
        with torch.inference_mode():
            return int(network(laid_out(images.fetch(torch.arange(1)), device)).shape[1])
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"the encoder does not fit {images.name}, whose samples have the shape {images.shape}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def columns_of(sets: Mapping[str, SampleSet]) -> Columns:
    """What is known of each row beside its features: its number in its split, whether that is the test split, its name
    (of its file, or of its row in one), and its label where there are any (-1 where there is none).
    """
    index = [np.arange(len(images), dtype=np.int64) for images in sets.values()]
    test = [np.full(len(images), split == "test") for split, images in sets.items()]
    columns = {"index": np.concatenate(index), "test": np.concatenate(test)}
    columns["name"] = np.array([name for images in sets.values() for name in images.names])
    if any(images.labels is not None for images in sets.values()):
        labels = [
            np.full(len(images), -1) if images.labels is None else images.labels.numpy() for images in sets.values()
        ]
        columns["label"] = np.concatenate(labels).astype(np.int64)
    return columns


def blocks_of(network: nn.Module, sets: Mapping[str, SampleSet], batch_size: int) -> Iterator[np.ndarray]:
    """float32 (B, D), batch by batch, without augmentation, in eval mode and without autocast."""
    device = next(network.parameters()).device
    for split, images in sets.items():
        rows = torch.arange(len(images)).split(batch_size)
        for index in tracked(rows, f"{images.name} {split}"):
            with torch.inference_mode():
                h = network(laid_out(images.fetch(index), device)).float().cpu()  # (B, D)
            bad = (~h.isfinite()).any(1).nonzero().flatten()
            if len(bad):
                raise UserError(
                    f"the features of {images.names[int(index[bad[0]])]} of {images.name} are NaN or infinite: "
                    "training diverged, or the file is damaged; use an earlier checkpoint"
                )
            yield h.numpy()


def write_npz(
    path: Path, shape: tuple[int, int], blocks: Blocks, columns: Columns, metadata: Mapping[str, Any]
) -> None:
    """What `numpy.savez` writes: an array for each column, and `metadata`, a JSON text. Loads without pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            for block in blocks:
                member.write(np.ascontiguousarray(block, "<f4").data)
        for name, values in {**columns, "metadata": np.array(json.dumps(metadata))}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def write_safetensors(
    path: Path, shape: tuple[int, int], blocks: Blocks, columns: Columns, metadata: Mapping[str, Any]
) -> None:
    """A tensor for each column of numbers; `metadata`, with the names, as a JSON text under `twoview`.

    The format is the length of a JSON header, the header (type, shape and place of every tensor), and the bytes.
    """
    texts = {name: values.tolist() for name, values in columns.items() if values.dtype.kind == "U"}
    columns, metadata = {name: values for name, values in columns.items() if name not in texts}, {**metadata, **texts}
    types = {"<i8": "I64", "|b1": "BOOL", "<f4": "F32"}
    wide = sorted(columns, key=lambda name: -columns[name].itemsize)  # int64 first, then features, then bool: aligned
    before = [name for name in wide if columns[name].itemsize >= 4]
    header: dict[str, Any] = {"__metadata__": {"twoview": json.dumps(metadata)}}
    end = 0
    for name in [*before, "features", *wide[len(before) :]]:
        dtype, size = ("<f4", shape) if name == "features" else (columns[name].dtype.str, columns[name].shape)
        begin, end = end, end + int(np.dtype(dtype).itemsize * np.prod(size))
        header[name] = {"dtype": types[dtype], "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in before:
            file.write(columns[name].data)
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
        for name in wide[len(before) :]:
            file.write(columns[name].data)


def write_parquet(
    path: Path, shape: tuple[int, int], blocks: Blocks, columns: Columns, metadata: Mapping[str, Any]
) -> None:
    """A column each, features as lists of D floats, a row group for each block; `metadata` as a JSON text under
    `twoview` in the schema.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError("format=parquet needs pyarrow: pip install 'twoview[parquet]'") from None
    fields = [pa.field("features", pa.list_(pa.float32(), shape[1]))]
    for name, values in columns.items():
        fields.append(pa.field(name, pa.string() if values.dtype.kind == "U" else pa.from_numpy_dtype(values.dtype)))
    layout = pa.schema(fields, metadata={"twoview": json.dumps(metadata)})
    start = 0
    # Features are noise to a dictionary; the other columns are small.
    with pq.ParquetWriter(path, layout, use_dictionary=False) as writer:
        for block in blocks:
            rows = slice(start, start + len(block))
            features = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), shape[1])
            others = (values[rows] for values in columns.values())
            parts = [features, *(pa.array([*map(legible, v)] if v.dtype.kind == "U" else v) for v in others)]
            writer.write_table(pa.Table.from_arrays(parts, schema=layout))
            start = rows.stop


WRITERS: dict[str, Callable[..., None]] = {
    "npz": write_npz,
    "parquet": write_parquet,
    "safetensors": write_safetensors,
}
