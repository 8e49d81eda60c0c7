"""The wheel: it holds everything, and from an empty folder its command trains and judges."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import twoview

hatchling = pytest.importorskip("hatchling.builders.wheel")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(
        next(
            hatchling.WheelBuilder(str(ROOT)).build(
                directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"]
            )
        )
    )


def test_the_wheel_holds_the_package_and_its_configurations(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(f"twoview-{twoview.__version__}.dist-info/METADATA").decode()
        starts = archive.read(f"twoview-{twoview.__version__}.dist-info/entry_points.txt").decode()
    package, configs = ROOT / "ssl" / "twoview", ROOT / "configs"
    sources = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {f"twoview/{path.relative_to(package).as_posix()}" for path in sources}
    expected |= {f"twoview/configs/{path.relative_to(configs).as_posix()}" for path in configs.rglob("*.yaml")}
    assert names == expected
    assert {"twoview/py.typed", "twoview/configs/train.yaml", "twoview/report/page.html"} <= names
    assert "twoview = twoview.commands:main" in starts
    assert "Classifier: Typing :: Typed" in metadata
    assert "Project-URL: " in metadata
    description = metadata.partition("\n\n")[2]
    assert description.startswith("# twoview")
    assert not re.search(r"\]\((?!https?://|#)", description)


def test_an_editable_install_reads_the_checkout(tmp_path: Path) -> None:
    built = next(hatchling.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["editable"]))
    with zipfile.ZipFile(built) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == {"_twoview.pth"}
        assert archive.read("_twoview.pth").decode() == str(ROOT / "ssl")


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = pytest.importorskip("hatchling.builders.sdist")
    packed = next(sdist.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    subprocess.run(["tar", "-xzf", packed, "-C", str(tmp_path)], check=True)
    unpacked = tmp_path / f"twoview-{twoview.__version__}"
    again = next(hatchling.WheelBuilder(str(unpacked)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as two:
        assert sorted(one.namelist()) == sorted(two.namelist())


def test_from_an_empty_folder_the_installed_command_trains_and_probes(wheel: Path, tmp_path: Path) -> None:
    """In a new environment that has the libraries of this one, by a path, and no checkout."""
    venv, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(words, cwd=empty, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr + ended.stdout
        return ended

    run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    inside = next((venv / "lib").glob("python*")) / "site-packages"
    (inside / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python, command = str(venv / "bin" / "python"), str(venv / "bin" / "twoview")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run(*install, "--disable-pip-version-check", str(wheel))

    assert str(inside) in run(python, "-c", "import twoview; print(twoview.__file__)").stdout
    assert "probe" in run(command).stdout
    assert "twoview train experiment=demo" in run(command, "train", "--help").stdout
    small = ["encoder=small", "encoder.widths=[8,8,8,8]", "model.projector.hidden_dim=16", "trainer=cpu", "knn=null"]
    small += ["data=shapes", "data.n_train=64", "data.n_test=32", "data.size=16", "batch_size=16", "epochs=1"]
    trained = run(command, "train", "model=simclr", *small, "hydra.run.dir=run")
    line = re.search(r"next:  twoview probe (ckpt=\S+)", trained.stdout)
    assert line, trained.stdout
    assert "linear top-1" in run(command, "probe", line[1], "strengths=[0.01]").stdout
    assert (empty / "run" / "linear_probe.json").is_file()
    assert "finished" in run(python, "-m", "twoview", "runs", "list", "--root", ".").stdout
