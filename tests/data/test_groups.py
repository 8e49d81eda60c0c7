"""Parquet files larger than memory: rows are read with their row groups, in an order that keeps these together."""

import io
import json
import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from twoview.augment.views import TwoViews
from twoview.data.batches import GlobalBatches, TwoViewDataModule
from twoview.data.groups import FileColumn, RowGroups
from twoview.data.image.parquet import parquet
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.rng import permutation, permutation_by_blocks
from twoview.run.identity import data_digest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROWS, GROUP, FILE = 50, 4, 20  # in all, of a row group, of a file


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write(root: Path) -> Path:
    """Image i has the grey level i."""
    root.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, ROWS, FILE)):
        rows = range(start, min(start + FILE, ROWS))
        images = [{"bytes": png(row), "path": "x"} for row in rows]
        labels = [row % 3 if row % 5 else None for row in rows]
        table = pa.table({"image": pa.array(images, IMAGE), "label": pa.array(labels, pa.int64())})
        pq.write_table(table, root / f"train-{number}.parquet", row_group_size=GROUP)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("groups") / "data")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each row group is read."""
    found: Counter[int] = Counter()
    plain = RowGroups._read

    def read(self: RowGroups, group: int) -> Any:
        found[group] += 1
        return plain(self, group)

    monkeypatch.setattr(RowGroups, "_read", read)
    return found


def load(root: Path, split: str = "train", **options: Any) -> SampleSet:
    found = parquet(root, split, **({"in_memory": False} | options))
    assert found is not None
    return found


def test_on_demand_a_set_is_what_it_is_in_memory(root: Path) -> None:
    for words in ({}, {"holdout": 0.3}):
        for split in ("train", "test") if words else ("train",):
            lazy, whole = load(root, split, **words), load(root, split, in_memory=True, **words)
            assert (lazy.in_memory, whole.in_memory) == (False, True)
            assert lazy.digest() == whole.digest()
            assert lazy.preprocess.describe() == whole.preprocess.describe()
            assert list(lazy.names) == list(whole.names)
            index = torch.tensor([9, 2, 9, 5, 0])
            assert torch.equal(lazy.fetch(index), whole.fetch(index))
            assert lazy.labelled().digest() == whole.labelled().digest()
            assert list(lazy.labelled().names) == list(whole.labelled().names)


def test_a_row_knows_its_place(root: Path) -> None:
    train = load(root)
    assert (train.names[0], train.names[45]) == ("train-0.parquet, row 0", "train-2.parquet, row 5")
    assert train.fetch(torch.arange(ROWS))[:, 0, 0, 0].tolist() == list(range(ROWS))
    with pytest.raises(IndexError):
        train.names[ROWS]


def test_footers_tell_the_rest(root: Path, reads: Counter[int]) -> None:
    files = sorted(root.glob("*.parquet"))
    column = FileColumn(files, "image", "image")
    assert len(column) == ROWS
    assert [column.name(i) for i in (0, 19, 20)] == [f"{files[0]}, row 0", f"{files[0]}, row 19", f"{files[1]}, row 0"]
    blocks, _ = column.blocks()
    assert blocks.tolist() == [g for g, n in enumerate([4] * 12 + [2]) for _ in range(n)]
    assert column.stamp() == FileColumn(files, "image", "image").stamp()
    assert not reads


def test_what_is_held_is_bounded(root: Path, reads: Counter[int]) -> None:
    groups = RowGroups(sorted(root.glob("*.parquet")), "image", "image", cache_mb=1e-3)
    held = []
    for row in range(ROWS):
        assert groups.value(row)["bytes"] == png(row)
        held.append([column.nbytes for column in groups._groups.values()])
    assert max(map(sum, held)) <= 1000
    assert max(map(len, held)) > 1
    assert set(reads.values()) == {1}
    groups.value(0)
    assert reads[0] == 2


def test_a_pickle_holds_no_images(root: Path) -> None:
    train = load(root, cache_mb=100)
    before = len(pickle.dumps(train.samples))
    train.fetch(torch.arange(ROWS))
    assert len(pickle.dumps(train.samples)) == before
    again = pickle.loads(pickle.dumps(train.samples))
    assert torch.equal(again.fetch(range(ROWS)), train.fetch(torch.arange(ROWS)))


def test_a_set_is_known_by_its_files(root: Path, tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "moved")
    assert data_digest(load(root)) == data_digest(load(elsewhere))
    assert data_digest(load(root)) != data_digest(load(root, holdout=0.3))
    table = pq.read_table(elsewhere / "train-0.parquet")
    pq.write_table(table, elsewhere / "train-0.parquet", row_group_size=GROUP + 1)
    assert data_digest(load(root)) != data_digest(load(elsewhere))


def damage(file: Path, row: int) -> None:
    """What a row group holds is overwritten, and its footer stays."""
    group = pq.ParquetFile(file).metadata.row_group(row // GROUP)
    content = bytearray(file.read_bytes())
    start = min(group.column(i).data_page_offset for i in range(group.num_columns - 1))
    content[start : start + 40] = b"\xff" * 40
    file.write_bytes(content)


def test_a_damaged_row_group_is_named_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path)
    damage(root / "train-1.parquet", 8)
    with pytest.raises(UserError, match=r"train-1\.parquet is damaged or no Parquet file .*data\.on_error=skip"):
        load(root)
    left = load(root, on_error="skip")
    assert left.fetch(torch.arange(len(left)))[:, 0, 0, 0].tolist() == [*range(28), *range(32, ROWS)]
    assert "4 of 50 images of the train split are damaged and left out" in caplog.text


def test_a_shard_that_is_none_is_named_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path)
    (root / "train-1.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"train-1\.parquet is damaged or no Parquet file"):
        load(root)
    assert len(load(root, on_error="skip")) == ROWS - FILE
    assert "train-1.parquet is damaged or no Parquet file" in caplog.text
    for file in root.glob("*.parquet"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="not one of the 3 Parquet files can be read"):
        load(root, on_error="skip")


@pytest.mark.parametrize("mb", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_none_is_refused(root: Path, mb: float) -> None:
    with pytest.raises(UserError, match=r"data\.cache_mb"):
        load(root, cache_mb=mb)


# The order


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_order_by_blocks(sizes: list[int], held: int, seed: int, epoch: int) -> None:
    block = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    order = permutation_by_blocks(block, held, seed, epoch)
    assert order.sort().values.tolist() == list(range(len(block)))
    if held >= len(sizes):
        assert torch.equal(order, permutation(len(block), seed, epoch))
    seen = block[order].tolist()
    turns, at = [], 0  # the blocks of one turn after the other: `held` of them, in no other turn
    while at < len(seen):
        turn: set[int] = set()
        while at < len(seen) and (seen[at] in turn or len(turn) < held):
            turn.add(seen[at])
            at += 1
        turns.append(turn)
    assert sum(map(len, turns)) == len(sizes)


def test_every_block_takes_every_turn() -> None:
    block = torch.arange(4).repeat_interleave(3)
    first = Counter(int(permutation_by_blocks(block, 1, 0, epoch)[0]) for epoch in range(1200))
    assert len(first) == 12
    assert all(60 < count < 140 for count in first.values())  # 100 +- 9.6


def module(train: SampleSet, batch: int, **words: Any) -> TwoViewDataModule:
    return TwoViewDataModule(train, TwoViews({}, train.preprocess), batch, **words)


def batches(data: TwoViewDataModule, rank: int = 0, world: int = 1, step: int = 0) -> list[list[int]]:
    data.trainer = SimpleNamespace(world_size=world, global_rank=rank, global_step=step)  # type: ignore[assignment]
    return [batch.tolist() for batch in GlobalBatches(data)]


def test_an_epoch_by_blocks_reads_each_row_group_once_or_twice(root: Path, reads: Counter[int]) -> None:
    train = load(root, cache_mb=3e-3)
    _, held = train.samples.blocks()  # type: ignore[union-attr, misc]
    assert 1 < held < 6
    data = module(train, 5, shuffle="blocks")
    reads.clear()
    seen = []
    for batch in batches(data):
        seen += train.fetch(torch.tensor(batch))[:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(ROWS))
    assert len(reads) >= 13 - held  # some are held since mean and std were taken
    assert sum(reads.values()) <= 13 + 50 // 5  # a batch between two turns may ask for a group again
    by_blocks = sum(reads.values())
    reads.clear()
    for batch in batches(module(train, 5)):
        train.fetch(torch.tensor(batch))
    assert sum(reads.values()) > 1.5 * by_blocks


def test_the_order_by_blocks_is_that_of_any_number_of_devices_and_of_a_run_that_goes_on(root: Path) -> None:
    data = module(load(root, cache_mb=3e-3), 6, shuffle="blocks", seed=3)
    alone = batches(data)
    assert alone != batches(module(load(root), 6, seed=3))
    for world in (2, 3):
        ranks = [batches(data, rank, world) for rank in range(world)]
        assert [[i for part in parts for i in part] for parts in zip(*ranks, strict=True)] == alone
    assert batches(data, step=5) == alone[5:]
    assert batches(data, step=len(alone)) != alone


def test_blocks_need_blocks(root: Path) -> None:
    with pytest.raises(UserError, match=r"loader\.shuffle=blocks is for sets that are read in blocks.* in memory"):
        module(load(root, in_memory=True), 5, shuffle="blocks")
    with pytest.raises(UserError, match="'chunks' is neither full nor blocks"):
        module(load(root), 5, shuffle="chunks")


def test_loader_processes_read_the_same(root: Path) -> None:
    found = []
    for workers in (0, 2):
        data = module(load(root, cache_mb=3e-3), 10, shuffle="blocks", num_workers=workers)
        device = torch.device("cpu")
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            world_size=1, global_rank=0, global_step=0, max_epochs=1, strategy=SimpleNamespace(root_device=device)
        )
        found.append([samples for samples, _, _ in data.train_dataloader()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# Record batches, as `datasets` saves them


def save(root: Path, split: str, rows: range) -> Path:
    folder = root / split
    folder.mkdir(parents=True)
    images = [{"bytes": png(row), "path": None} for row in rows]
    table = pa.table({"image": pa.array(images, IMAGE), "label": [row % 2 for row in rows]})
    features = {"label": {"names": ["even", "odd"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file = folder / "data-00000-of-00001.arrow"
    with pa.ipc.new_stream(str(file), table.schema) as writer:
        writer.write_table(table, max_chunksize=GROUP)
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text("{}")
    (folder / "cache-0123.arrow").write_bytes(b"what a computation left")
    return file


def test_a_saved_data_set_is_mapped(tmp_path: Path) -> None:
    save(tmp_path, "train", range(30))
    save(tmp_path, "test", range(100, 110))
    whole, lazy = (load(tmp_path, in_memory=memory, suffix="arrow") for memory in (True, False))
    test = load(tmp_path, "test", suffix="arrow")
    assert lazy.digest() == whole.digest()
    assert (lazy.classes, test.classes) == (("even", "odd"), ("even", "odd"))
    assert lazy.fetch(torch.tensor([29, 3]))[:, 0, 0, 0].tolist() == [29, 3]
    assert test.fetch(torch.arange(10))[:, 0, 0, 0].tolist() == [*range(100, 110)]
    assert lazy.names[5] == "train/data-00000-of-00001.arrow, row 5"
    assert pickle.loads(pickle.dumps(lazy)).digest() == lazy.digest()
    with pytest.raises(UserError, match="read file by file"):
        module(lazy, 5, shuffle="blocks")


def test_a_damaged_saved_data_set_is_named(tmp_path: Path) -> None:
    file = save(tmp_path, "train", range(30))
    content = file.read_bytes()
    for part in (content[:0], content[:100], content[: len(content) // 2], b"no Arrow" * 20):
        file.write_bytes(part)
        with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow is damaged or no Arrow file"):
            load(tmp_path, suffix="arrow")


def test_the_package_itself_saves_what_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    images = [Image.open(io.BytesIO(png(row))) for row in range(12)]
    made = datasets.Dataset.from_dict({"image": images, "label": [row % 2 for row in range(12)]}, features=features)
    datasets.DatasetDict({"train": made, "test": made.select(range(3, 6))}).save_to_disk(str(tmp_path / "set"))
    train, test = (load(tmp_path / "set", split, suffix="arrow") for split in ("train", "test"))
    assert train.classes == ("even", "odd")
    assert train.fetch(torch.arange(12))[:, 0, 0, 0].tolist() == [*range(12)]
    assert test.fetch(torch.arange(3))[:, 0, 0, 0].tolist() == [3, 4, 5]
