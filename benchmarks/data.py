"""Memory and start-up with data larger than memory: Parquet files of 10,000, 100,000 and 1,000,000 small images.

    python benchmarks/data.py [--quick]    # 15 minutes on 2 CPU cores; needs the extra `parquet`

JPEGs of 32 x 32 noise with some structure, 1,000 rows a row group and 20,000 a file, are written to a temporary folder.
Each case is a process that opens the set as `data=parquet data.in_memory=false` does, and goes through batches as a
rank does, with and without loader processes, as the only one and as each of two, in both orders; it makes no views
and trains nothing, so that all memory is that of the data. It is open when mean and std are known, from 2,000 images.
`extra_bytes`: the peak of the resident set beyond what it was after the imports; `bytes_of_workers`: what is of the
loader processes alone. Writes benchmarks/results/data.json.
"""

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import record
from rich.console import Console
from rich.table import Table

SIZES = (10_000, 100_000, 1_000_000)
ROWS, FILE = 1_000, 20_000  # of a row group, of a file
BATCH, BATCHES = 512, 60
CACHE_MB = 64
CASES = [("blocks", 0, 1), ("blocks", 2, 1), ("full", 0, 1), ("blocks", 2, 2)]  # shuffle, workers, ranks
GOAL = {"bytes": 2**30, "growth": 1.5}


def write(folder: Path, n: int) -> int:
    """Parquet files with n images; their bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng, kind = np.random.default_rng(0), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = []
    for _ in range(2_000):  # so many different ones, in turn
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((32, 32))
        file = io.BytesIO()
        coarse.save(file, "JPEG", quality=95)
        pictures.append(file.getvalue())
    for number, start in enumerate(range(0, n, FILE)):
        rows = range(start, min(start + FILE, n))
        images = [{"bytes": pictures[row % len(pictures)], "path": f"{row}.jpg"} for row in rows]
        table = pa.table({"image": pa.array(images, kind), "label": [row % 10 for row in rows]})
        pq.write_table(table, folder / f"train-{number:05d}.parquet", row_group_size=ROWS, use_dictionary=["label"])
    return sum(file.stat().st_size for file in folder.glob("*.parquet"))


def measure(root: Path, shuffle: str, workers: int, rank: int, ranks: int, batches: int) -> dict[str, Any]:
    """One rank, in this process."""
    from types import SimpleNamespace

    import torch

    from twoview.augment.views import TwoViews
    from twoview.data.batches import TwoViewDataModule
    from twoview.data.image.parquet import parquet

    torch.set_num_threads(1)
    import pyarrow.parquet  # noqa: F401 - not of the data

    before, began = record.memory_before(False), time.perf_counter()
    train = parquet(root, "train", in_memory=False, cache_mb=CACHE_MB)
    assert train is not None
    opened, at_start = time.perf_counter() - began, record.peak() - before
    views = TwoViews({}, train.preprocess)
    data = TwoViewDataModule(train, views, BATCH * ranks, shuffle=shuffle, num_workers=workers, max_batches=batches)
    device = torch.device("cpu")
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=ranks, global_rank=rank, global_step=0, max_epochs=1, strategy=SimpleNamespace(root_device=device)
    )
    began, first, held, n = time.perf_counter(), 0.0, 0, 0
    for samples, index, _ in data.train_dataloader():
        first = first or time.perf_counter() - began
        n += len(index)
        assert samples.shape == (BATCH, 3, 32, 32)
        held = max(held, record.held_by_workers())
    return {
        "seconds_to_open": opened,
        "bytes_to_open": at_start,
        "first_batch_after_seconds": first,
        "images_per_second": n / (time.perf_counter() - began),
        "extra_bytes": record.peak() - before,
        "bytes_of_workers": held,
    }


def verdict(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Memory of the largest set, and beside that of the smallest."""

    def most(images: int) -> float | None:
        found = [
            c["extra_bytes"] + c["bytes_of_workers"] for c in cases if c["images"] == images and "skipped" not in c
        ]
        return max(found, default=None)

    sizes = sorted({case["images"] for case in cases})
    small, large = most(sizes[0]), most(sizes[-1])
    return [
        record.goal(f"bytes of a rank with its workers, {sizes[-1]:,} images", large, at_most=GOAL["bytes"]),
        record.goal(
            f"of its bytes with {sizes[0]:,} images", large / small if small and large else None, at_most=GOAL["growth"]
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 and 4,000 images, 2 batches")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data.json")
    parser.add_argument("--case", nargs=6, metavar=tuple("ABCDEF"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        root, shuffle, *numbers = args.case
        print(json.dumps(measure(Path(root), shuffle, *map(int, numbers))))
        return
    console, began, cases = Console(), time.perf_counter(), []
    with record.until_stopped(console):
        for n in (2_000, 4_000) if args.quick else SIZES:
            with tempfile.TemporaryDirectory() as folder:
                size = write(Path(folder), n)
                for shuffle, workers, ranks in CASES:
                    batches = 2 if args.quick else BATCHES
                    for rank in range(ranks):
                        console.print(
                            f"{n:,} images, {shuffle}, {workers} workers, rank {rank} of {ranks}", style="dim"
                        )
                        words = [folder, shuffle, *map(str, (workers, rank, ranks, min(batches, n // BATCH // ranks)))]
                        case = record.in_own_process(__file__, ["--case", *words])
                        what = {"images": n, "file_bytes": size, "shuffle": shuffle, "workers": workers, "rank": rank}
                        cases.append({**what, "ranks": ranks, **case})
    table = Table(
        "images", "files, MB", "shuffle", "workers", "rank", "open, s", "open, MiB", "peak, MiB", "workers, MiB"
    )
    for case in cases:
        row = [f"{case['images']:,}", f"{case['file_bytes'] / 1e6:,.0f}", case["shuffle"], str(case["workers"])]
        row.append(f"{case['rank']} of {case['ranks']}")
        if "skipped" in case:
            row.append(case["skipped"])
        else:
            row.append(f"{case['seconds_to_open']:.1f}")
            row += [f"{case[key] / 2**20:,.0f}" for key in ("bytes_to_open", "extra_bytes", "bytes_of_workers")]
        table.add_row(*row)
    console.print(table)
    goals = verdict(cases) if cases else []
    record.say(goals, console)
    record.write(args.out, {"cache_mb": CACHE_MB, "batch": BATCH, "cases": cases, "verdict": goals}, began, {}, console)


if __name__ == "__main__":
    main()
