"""The habits of the project: one version, workflows that call make, forms that parse, a wheel that describes itself."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import twoview

FORMS = sorted(path for path in (ROOT / ".github").rglob("*.yml") if "ISSUE_TEMPLATE" in path.parts)
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_there_is_one_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == twoview.__version__
    assert twoview.__version__ in (ROOT / "CHANGELOG.md").read_text()
    assert not re.search(r"^version *=", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_targets_of_make(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    runs = [step["run"] for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"][2:]]
    assert runs
    for line in runs:
        make, *words = line.split()
        assert make == "make"
        assert {word for word in words if "=" not in word} <= targets, line


@pytest.mark.parametrize("form", [path for path in FORMS if path.stem != "config"], ids=lambda path: path.stem)
def test_forms_have_what_the_site_wants(form: Path) -> None:
    found = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(found)
    fields = [field["id"] for field in found["body"]]
    assert len(set(fields)) == len(fields)
    assert all(field["attributes"]["label"] for field in found["body"])


def test_hooks_before_a_commit_are_those_of_make_check() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert check is not None
    made = [line.replace("$(BIN)", ".venv/bin").strip().removesuffix(" .") for line in check[1].splitlines()]
    assert [hook["entry"] for hook in local["hooks"]] == made


def test_the_description_of_a_wheel_has_no_link_into_the_repository() -> None:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    built = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(built)
    text = (ROOT / "README.md").read_text()
    relative = re.compile(r"\]\((?!https?://|#)")
    assert relative.search(text)
    alone = built.standing_alone(text, None)
    assert not relative.search(alone)
    assert "![" not in alone
    assert "More on installing" in alone
    absolute = built.standing_alone(text, "https://example.org/twoview")
    assert not relative.search(absolute)
    assert "](https://example.org/twoview/blob/main/docs/install.md)" in absolute
    assert "](https://example.org/twoview/raw/main/benchmarks/results/preview_pairs.png)" in absolute
