"""`ssl/` is a source root like `src/`. A package of that name would hide Python's own `ssl` from torch and urllib."""

import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "ssl"
PACKAGE = SOURCE / "twoview"
COMMANDS = [ROOT / "train.py", *sorted((ROOT / "scripts").glob("*.py"))]
FOUND = "__import__('ssl').SSLContext.__module__ + ' ' + str(__import__('ssl').__file__)"


def is_the_standard_one(found: str) -> bool:
    module, path = found.strip().splitlines()[-1].split(" ", 1)
    return module == "ssl" and not Path(path).is_relative_to(ROOT / "ssl") and Path(path).name.startswith("ssl.")


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_ssl_is_no_package() -> None:
    assert PACKAGE.is_dir()
    assert not list(SOURCE.glob("__init__.*"))
    assert [p.name for p in SOURCE.iterdir() if p.name != "__pycache__"] == ["twoview"]


def test_import_ssl_from_the_root() -> None:
    result = run("-c", f"import sys; assert sys.path[0] == ''; print({FOUND})")
    assert is_the_standard_one(result.stdout), result.stderr


def test_these_tests_notice_the_trap(tmp_path: Path) -> None:
    (tmp_path / "ssl").mkdir()
    assert is_the_standard_one(run("-c", f"print({FOUND})", cwd=tmp_path).stdout)
    (tmp_path / "ssl" / "__init__.py").touch()
    result = run("-c", f"print({FOUND})", cwd=tmp_path)
    assert result.returncode != 0
    assert "has no attribute 'SSLContext'" in result.stderr


def test_import_ssl_under_every_command() -> None:
    """What is imported once `python <command> --help` has run, with the folder of the command first on the path. Each
    command has a fork of a process to itself, which has torch imported already and not yet Python's ssl again.
    """
    code = f"""
import os, runpy, sys
import twoview.commands
for command in sys.argv[1:]:
    if not (child := os.fork()):
        sys.path[0], sys.argv = os.path.dirname(command), [command, "--help"]
        for name in ("ssl", "_ssl"):
            sys.modules.pop(name, None)
        try:
            runpy.run_path(command, run_name="__main__")
        except SystemExit as end:
            assert not end.code, end.code
        sys.path.insert(0, {str(ROOT)!r})
        print("\\nfound", command, {FOUND}, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, command
"""
    result = run("-c", code, *map(str, COMMANDS))
    assert result.returncode == 0, result.stderr
    found = re.findall(r"^found (\S+) (.*)$", result.stdout, re.MULTILINE)
    assert [Path(command) for command, _ in found] == COMMANDS
    for command, where in found:
        assert is_the_standard_one(where), command


def test_import_ssl_under_pytest(tmp_path: Path) -> None:
    test = tmp_path / "test_inside.py"
    test.write_text(f"import sys\ndef test_it():\n    assert {str(ROOT)!r} in sys.path\n    print({FOUND})\n")
    # `python -m` puts the current folder, the root, on the path
    result = run(
        "-m", "pytest", "-qs", "-c", "/dev/null", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(test)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert is_the_standard_one(
        next(line for line in result.stdout.splitlines() if "SSLContext" in line or "ssl" in line)
    )


def test_import_ssl_in_a_spawned_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))  # the worker inherits the path
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert str(ROOT) in pool.apply(eval, ("__import__('sys').path",))
        assert is_the_standard_one(pool.apply(eval, (FOUND,)))


def test_the_package_imports_from_its_source_root() -> None:
    result = run("-c", "import twoview; print(twoview.__file__)")
    assert Path(result.stdout.strip()).is_relative_to(PACKAGE), result.stderr


def names() -> dict[Path, str]:
    files = [
        *PACKAGE.rglob("*.py"),
        *(p for folder in ("scripts", "benchmarks") for p in (ROOT / folder).rglob("*.py")),
    ]
    named = {p: p.stem for p in [*files, *ROOT.glob("*.py")] if p.stem not in ("__init__", "__main__")}
    folders = [p.parent for p in PACKAGE.rglob("*.py")]
    return named | {p: p.name for p in folders}


def test_no_module_is_named_like_a_standard_one() -> None:
    assert len(names()) > 20
    assert not {str(p.relative_to(ROOT)) for p, name in names().items() if name in sys.stdlib_module_names}


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "lib"}
    assert not {str(p.relative_to(ROOT)) for p, name in names().items() if name.strip("_") in drawers}


def test_every_folder_of_the_package_is_a_package() -> None:
    assert not [p for p in PACKAGE.rglob("*.py") if not (p.parent / "__init__.py").is_file()]


def test_no_two_test_files_share_a_name() -> None:
    """Folders of tests are no packages, so pytest knows a file by its name alone."""
    stems = [p.stem for p in (ROOT / "tests").rglob("test_*.py")]
    assert len(stems) == len(set(stems))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_oldest_torch_that_is_tested_is_the_oldest_that_is_allowed() -> None:
    bounds = re.findall(r'"(torch|torchvision)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert [name for name, _ in bounds] == ["torch", "torchvision"]
    dry = subprocess.run(["make", "-n", "test-oldest"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name, version in bounds:
        assert f"'{name}=={version}.*'" in dry
