"""Tables of runs."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from twoview.commands.runs import runs_command
from twoview.errors import UserError
from twoview.run.registry import find_runs


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """Two runs, of which the second has another learning rate, and a third that was killed early."""
    for name in ("one", "two", "killed"):
        shutil.copytree(finished, tmp_path / "runs" / name)
    config = yaml.safe_load((tmp_path / "runs/two/config.yaml").read_text())
    config["optimizer"]["lr_per_256"] = 0.5
    (tmp_path / "runs/two/config.yaml").write_text(yaml.safe_dump(config | {"name": "[red]bold[/red]"}))
    (tmp_path / "runs/two/linear_probe.json").write_text('{"top1": 0.5}')
    (tmp_path / "runs/killed/summary.json").unlink()
    return tmp_path / "runs"


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert runs_command([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_a_list_has_a_line_for_each_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "list", "--root", root)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert {"one", "two", "killed"} <= lines.keys()
    identity = json.loads((root / "one/identity.json").read_text())
    assert identity["run_hash"] in lines["one"]
    assert "50.00%" in lines["two"]
    assert "running or killed" in lines["killed"]


def test_a_run_is_shown_with_all_its_keys(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "show", root / "two")
    assert "optimizer.lr_per_256" in out
    assert "[red]bold[/red]" in out  # as it is, not as markup


def test_a_difference_names_what_differs_and_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "diff", root / "one", root / "two")
    assert "optimizer.lr_per_256" in out
    assert "without effect" in next(line for line in out.splitlines() if line.strip().startswith("name"))
    assert "seed" not in out


def test_results_of_other_runs_are_compared_on_demand_only(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "knn" in said(capsys, "diff", root / "one", root / "killed")  # the same run
    out = said(capsys, "diff", root / "one", root / "two")
    assert "results are not compared, since the runs are of other configuration:" in out
    path = root / "two" / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": "other"}))
    out = said(capsys, "diff", root / "one", root / "two")
    assert "results are not compared, since the runs are of other configuration, training samples:" in out
    assert "linear" not in out
    assert "linear" in said(capsys, "diff", root / "one", root / "two", "--across")


def test_an_export_has_every_number_and_key(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "export", "--root", root, "--out", tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(newline="") as file:
        table = {Path(row["run"]).name: row for row in csv.DictReader(file)}
    assert table.keys() == {"one", "two", "killed"}
    assert (table["one"]["config.optimizer.lr_per_256"], table["two"]["config.optimizer.lr_per_256"]) == ("0.03", "0.5")
    summary = json.loads((root / "one/summary.json").read_text())
    assert float(table["one"]["knn"]) == summary["knn"]["final"]
    assert table["killed"]["loss"] == ""


def test_what_is_no_run_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run in"):
        runs_command(["show", str(tmp_path)])
    with pytest.raises(UserError, match="there is no folder nowhere"):
        runs_command(["list", "--root", "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no run below"):
        find_runs(tmp_path / "empty")
    (root / "one/config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot be read"):
        find_runs(root)
    with pytest.raises(SystemExit):
        runs_command(["lsit"])
