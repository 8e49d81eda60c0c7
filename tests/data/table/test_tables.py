"""Tables as people have them: what each column is, what is missing, what tells nothing, and what is said of it."""

import logging
import math
from pathlib import Path

import pytest
import torch

from twoview.data.table.files import table
from twoview.data.table.rows import TableRows
from twoview.errors import UserError
from twoview.run.checkpoint import instantiate_own

N = 40


def write(path: Path, columns: dict[str, list[str]], separator: str = ",", encoding: str = "utf-8") -> Path:
    lines = [separator.join(columns), *(separator.join(row) for row in zip(*columns.values(), strict=True))]
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def usual() -> dict[str, list[str]]:
    return {
        "age": [str(20 + row * 7 % 31) for row in range(N)],
        "town": [("Zürich", "Genève", "Bern")[row % 3] for row in range(N)],
        "label": [("no", "yes")[row // 2 % 2] for row in range(N)],
    }


def load(path: Path, split: str = "train", **more: object):  # type: ignore[no-untyped-def]
    return table(path, split, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_any_separator_and_encoding_is_the_same_table(tmp_path: Path, separator: str, encoding: str) -> None:
    found = load(write(tmp_path / "a.csv", usual(), separator, encoding))
    assert found.classes == ("no", "yes")
    assert [column["name"] for column in found.preprocess.columns] == ["age", "town"]
    assert found.preprocess.columns[1]["values"] == ["Bern", "Genève", "Zürich"]
    assert found.samples[:3, 1].tolist() == [3, 2, 1]
    assert found.labels.tolist() == [row // 2 % 2 for row in range(N)]


def test_parquet_is_the_same_table_as_csv(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = usual()
    typed = columns | {"age": [int(value) for value in columns["age"]]}
    pq.write_table(pa.table(typed), tmp_path / "b.parquet")
    assert load(tmp_path / "b.parquet").digest() == load(write(tmp_path / "a.csv", columns)).digest()


def test_what_is_missing_stays_missing_and_unseen_is_as_missing(tmp_path: Path) -> None:
    columns = usual()
    columns["age"][0] = ""
    columns["town"][1] = "?"
    write(tmp_path / "train.csv", columns)
    columns["town"][2] = "Basel"
    write(tmp_path / "test.csv", columns)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.samples[0, 0].isnan()
    assert train.samples[1, 1] == 0
    assert test.samples[2, 1] == 0
    x = test.preprocess(test.samples)
    assert x.isfinite().all()
    assert x.shape == (N, train.preprocess.width)
    assert x[0, :2].tolist() == [0, 1]  # the mean, and that it is missing
    assert not x[1:3, -3:].any()


LEFT = {
    "constant": ["7"] * N,
    "nothing": [""] * N,
    "id": [f"customer {row}" for row in range(N)],
    "number": [str(1000 + row) for row in range(N)],
}


@pytest.mark.parametrize("name", LEFT)
def test_columns_that_say_nothing_are_left_out_with_a_word(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = load(write(tmp_path / "a.csv", {name: LEFT[name], **usual()}))
    assert [column["name"] for column in found.preprocess.columns] == ["age", "town"]
    assert f"column {name!r} is left out" in caplog.text


def test_mixed_types_and_copies_of_the_label_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = usual()
    columns = {
        "mixed": ["3", "many", "4", "few"] * (N // 4),
        "copy": [f"is {word}" for word in columns["label"]],
        **columns,
    }
    with caplog.at_level(logging.WARNING):
        found = load(write(tmp_path / "a.csv", columns))
    assert found.preprocess.columns[0]["values"] == ["3", "4", "few", "many"]
    assert "'mixed' holds numbers and texts" in caplog.text
    assert "data.leave_out=[copy]" in caplog.text


def test_dates_are_numbers_of_days(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    import datetime

    days = [datetime.date(1970, 1, 1 + row % 9) for row in range(N)]
    pq.write_table(pa.table({"day": days, "label": [row % 2 for row in range(N)]}), tmp_path / "b.parquet")
    assert load(tmp_path / "b.parquet").samples[:9, 0].tolist() == list(range(9))


def test_numbers_may_be_categories_and_the_holdout_is_of_each_class(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", {"code": [str(row % 4) for row in range(N)], **usual()})
    train, test = (load(path, split, categorical=["code"], holdout=0.2) for split in ("train", "test"))
    assert train.preprocess.columns[0]["values"] == ["0", "1", "2", "3"]
    assert (len(train), len(test)) == (32, 8)
    assert test.labels.bincount().tolist() == [4, 4]
    assert load(path, "test") is None


def test_a_thousand_columns(tmp_path: Path) -> None:
    columns = {f"c{i}": [str((row * (i + 3)) % 17) for row in range(N)] for i in range(1000) if (i + 3) % 17}
    found = load(write(tmp_path / "a.csv", columns | {"label": usual()["label"]}))
    assert found.shape == (len(columns),)
    assert found.preprocess(found.samples).isfinite().all()


def test_scales_are_of_the_train_split_and_travel(tmp_path: Path) -> None:
    columns = usual()
    write(tmp_path / "train.csv", columns)
    write(tmp_path / "test.csv", columns | {"age": ["1000"] * N})
    train, test = load(tmp_path), load(tmp_path, "test")
    ages = torch.tensor([float(age) for age in columns["age"]])
    assert train.preprocess.columns[0]["mean"] == pytest.approx(float(ages.mean()))
    assert train.preprocess.columns[0]["std"] == pytest.approx(float(ages.std(correction=0)))
    assert test.preprocess.describe() == train.preprocess.describe()
    again = instantiate_own(train.preprocess.describe(), "preprocess")
    assert torch.equal(again(test.samples), train.preprocess(test.samples))


def test_pieces_are_the_papers() -> None:
    rows = TableRows([{"name": "x", "mean": 0.0, "std": 1.0, "edges": [0.0, 1.0, 3.0]}])
    x = rows(torch.tensor([[-1.0], [0.5], [2.0], [9.0], [math.nan]]))
    assert x[:, 2:].tolist() == [[0, 0], [0.5, 0], [1, 0.5], [1, 1], [0, 0]]
    assert x[:, 1].tolist() == [0, 0, 0, 0, 1]


BAD = {
    "ragged": (b"a,b,label\n1,2,x\n3,y\n", r"row 1, has 2 values for 3 columns"),
    "twice": (b"a,a,label\n1,2,x\n", "names a column twice"),
    "empty": (b"", "is empty or no text"),
    "binary": (b"\x00\x01\x02", "is empty or no text"),
    "only names": (b"a,label\n", "has no rows"),
    "no label": (b"a,b\n1,2\n3,4\n", r"data.label_column names label; the columns are a and b"),
    "nothing left": (b"a,label\n1,x\n1,y\n", "at least one column"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_message(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.csv")


def test_a_text_among_the_numbers_of_the_test_split_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", usual())
    write(tmp_path / "test.csv", usual() | {"age": ["old"] * N})
    with pytest.raises(UserError, match=r"test.csv, row 0, column 'age' holds 'old', and the train split numbers"):
        load(tmp_path, "test")


def test_a_place_without_tables_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.root"):
        load(tmp_path)
