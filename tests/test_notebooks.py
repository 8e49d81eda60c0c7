"""The notebooks in examples/: they parse, their code compiles, what they print is small, and they run."""

import ast
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat")

ROOT = Path(__file__).resolve().parents[1]
BOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LARGEST = 400_000  # bytes of a file, pictures included
SECONDS = 900


def test_there_are_notebooks() -> None:
    names = {"contrastive_learning", "augmentation", "own_images", "few_labels", "sound"}
    assert names <= {path.stem for path in BOOKS}


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole(path: Path) -> None:
    """Valid, executed from top to bottom without an error, and nothing of the machine that did it is left."""
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        ast.parse(cell.source)
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
    text = path.read_text()
    assert len(text) < LARGEST
    assert not [word for word in ("/tmp", "/home", "/root", "/work") if f'"{word}' in text or f" {word}/" in text]
    assert book.cells[0].cell_type == "markdown"
    assert "pip install" in book.cells[0].source


@pytest.mark.slow
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, as a person would who has opened it there."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "ssl"), prepend=":")
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        book, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert any(cell.get("outputs") for cell in book.cells)
