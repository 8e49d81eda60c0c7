"""What may import what: the layers of the package, read from its source."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ssl" / "twoview"

HYDRA = {"hydra", "omegaconf"}
TORCH = {"torch", "torchvision"}
LIGHTNING = {"pytorch_lightning", "lightning_fabric"}
LOADERS = TORCH | {"tokenizers", "numpy", "PIL", "pyarrow", "soundfile"}

# The rooms in order: a module imports from its own room and from those above it in this list, never from one below.
ROOMS = (
    *("errors", "rng", "data", "augment", "encoder", "losses", "parallel", "optim", "model", "cli", "run", "stats"),
    *("report", "evaluate", "watch", "train", "card", "explore", "ablate", "play", "selftest", "commands"),
)
APART = {("card", "ablate"), ("ablate", "card")}  # two large readers of all that: neither imports the other
# Packages from outside that the lower rooms may use, beside the standard library. Rooms without an entry may use any.
PACKAGES: dict[str, set[str]] = {
    "errors": set(),
    "rng": {"torch"},
    "data": LOADERS | LIGHTNING,
    "augment": TORCH,
    "encoder": TORCH | {"safetensors", "timm", "transformers"},
    "losses": {"torch"},
    "parallel": {"torch"},
    "optim": {"torch"},
    "model": {"torch"} | LIGHTNING,
    "stats": {"torch", "numpy", "scipy"},
    "evaluate.classify": {"torch"},
    "evaluate.describe": TORCH | {"numpy"},
}
MAY_USE_HYDRA = {"cli", "run", "train", "watch", "evaluate", "card", "ablate", "selftest", "commands"}
EXTRAS = {
    "onnxruntime": "export",
    "pyarrow": "parquet",
    "soundfile": "audio",
    "tokenizers": "text",
    "faiss": "faiss",
    "huggingface_hub": "hub",
    "matplotlib": "plot",
    "jinja2": "report",
    "scipy": "report",
    "sklearn": "explore",
    "transformers": "hf",
    "umap": "umap",
    "timm": "timm",
    "werkzeug": "play",
}


def modules() -> dict[str, Path]:
    """`data.images` and so on, of all files of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, at_start: bool = False) -> set[str]:
    """Full names of all that a file imports, wherever it does so, or (`at_start`) when it is imported itself."""
    tree, found = ast.parse(path.read_text()), set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            nodes += node.orelse  # what only type checkers see is no import
        elif not (at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            nodes += ast.iter_child_nodes(node)
    return found


def outside(path: Path, at_start: bool = False) -> set[str]:
    """The packages that a file imports, without the standard library and twoview."""
    return {name.split(".")[0] for name in imports(path, at_start)} - sys.stdlib_module_names - {"twoview"}


def inside(path: Path) -> set[str]:
    """The modules of twoview that a file imports."""
    known, found = modules(), set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "twoview":
            ends = [".".join(parts[1:end]) for end in range(len(parts), 0, -1)]  # twoview.data.set.SampleSet, ...
            found.add(next(end for end in ends if end in known))
    return found


MODULES = modules()


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_module_lies_in_a_room() -> None:
    assert {room(name) for name in MODULES} - {"", "__main__"} <= set(ROOMS)
    assert set(ROOMS) <= {room(name) for name in MODULES}


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in ROOMS])
def test_imports_go_down_the_rooms(module: str) -> None:
    own = ROOMS.index(room(module))
    below = {name for name in inside(MODULES[module]) if name}
    assert {name for name in below if ROOMS.index(room(name)) > own} == set()
    assert not {(room(module), room(name)) for name in below} & APART


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(tuple(PACKAGES))])
def test_the_lower_rooms_use_few_packages(module: str) -> None:
    allowed = PACKAGES.get(".".join(module.split(".")[:2])) or PACKAGES.get(room(module))
    assert allowed is None or outside(MODULES[module]) <= allowed


def test_hydra_stays_at_the_top() -> None:
    users = {name for name, path in MODULES.items() if HYDRA & outside(path)}
    assert {name.split(".")[0] for name in users} <= MAY_USE_HYDRA
    assert "train.command" in users


def test_the_package_has_no_circles() -> None:
    graph = {name: inside(path) - {name} for name, path in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert order.index("rng") < order.index("augment.views") < order.index("train.pretrain")


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_nothing_imports_the_commands(path: Path) -> None:
    above = {"train", "scripts", "benchmarks", "tests"} | {p.stem for p in (ROOT / "scripts").glob("*.py")}
    assert not {name for name in imports(path) if name.split(".")[0] in above}


def test_commands_answer_before_torch_is_there() -> None:
    """`--help` and typing errors take no seconds: neither the commands nor what they import first needs torch."""
    seen, todo = set(), [ROOT / "train.py", *(ROOT / "scripts").glob("*.py"), PACKAGE / "__init__.py"]
    while todo:
        path = todo.pop()
        seen.add(path)
        assert not (TORCH | LIGHTNING) & outside(path, at_start=True), path
        if path.is_relative_to(PACKAGE):
            todo += [MODULES[name] for name in inside(path) if MODULES[name] not in seen]
        else:
            assert {name for name in imports(path) if name.startswith("twoview")} == {"twoview.commands.run"}
            todo.append(MODULES["commands"])


def declared() -> set[str]:
    """Names in pyproject.toml of what twoview needs, in the spelling of imports."""
    lines = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[0].splitlines()
    names = {line.strip().strip('"').split(">")[0] for line in lines if line.startswith('    "') and ">=" in line}
    return {{"pillow": "PIL", "hydra-core": "hydra"}.get(n, n.replace("-", "_")) for n in names}


def test_every_package_from_outside_is_declared() -> None:
    brought_along = {"omegaconf", "yaml", "lightning_fabric"}  # by Hydra and Lightning, which cannot do without
    needed = set().union(*(outside(path, at_start=True) for path in MODULES.values()))
    assert needed <= declared() | brought_along
    assert {"torch", "numpy", "hydra"} <= declared()


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_extras_are_imported_where_they_are_used(path: Path) -> None:
    assert not outside(path, at_start=True) & set(EXTRAS)


def test_extras_are_all_that_is_imported_late() -> None:
    late = set().union(*(outside(p) - outside(p, at_start=True) for p in MODULES.values()))
    everywhere = set().union(*(outside(p, at_start=True) for p in MODULES.values()))
    assert late - everywhere <= set(EXTRAS)


def test_there_are_no_star_imports() -> None:
    assert not {str(p) for p in MODULES.values() if any(name.endswith(".*") for name in imports(p))}
