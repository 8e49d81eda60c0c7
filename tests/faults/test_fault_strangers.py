"""Files from strangers: whatever they hold, nothing of it is executed and nothing is written where they say."""

import copy
import hashlib
import io
import itertools
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import datasets

from faults.battery import table
from twoview.run.checkpoint import _checksum, read_checkpoint

SMALL = ("encoder=small", "encoder.widths=[4,4,4,4]", "model.projector.hidden_dim=8", "batch_size=4", "epochs=1")
SMALL += ("trainer=cpu", "loader.max_batches=1", "knn=null")


def refused(ended: Any, name: str) -> None:
    message = ended.error
    assert name in message or "refused" in message, message
    assert "debug=true" not in message, message
    assert len(message) < 900


# Configurations in checkpoints.


def attacks(canary: Path) -> dict[str, Any]:
    touch = {"command": f"touch {canary}"}
    path = str(canary)
    return {
        "os.system": {"_target_": "os.system"} | touch,
        "posix.system": {"_target_": "posix.system"} | touch,
        "subprocess": {"_target_": "subprocess.run", "args": ["touch", path]},
        "eval": {"_target_": "builtins.eval", "_args_": [f"open({path!r}, 'w')"]},
        "exec through ours": {"_target_": "twoview.cli.entry.sys.modules", "_args_": []},
        "os through ours": {"_target_": "twoview.cli.entry.os.system"} | touch,
        "subprocess through ours": {"_target_": "twoview.train.pretrain.subprocess.run", "args": ["touch", path]},
        "hydra through ours": {
            "_target_": "twoview.cli.schema.hydra.utils.instantiate",
            "config": {"_target_": "os.system"},
        },
        "our own builder": {"_target_": "twoview.cli.schema.build", "node": {"_target_": "os.system"} | touch},
        "our report writer": {"_target_": "twoview.run.atomic.save", "path": path, "content": ""},
        "our weight writer": {
            "_target_": "twoview.run.checkpoint.save_encoder",
            "encoder": {"_target_": "twoview.encoder.small.Small"},
            "about": {},
            "path": path,
        },
        "our checkpoint writer": {
            "_target_": "twoview.run.saving.AtomicCheckpointIO.save_checkpoint",
            "self": {"_target_": "twoview.run.saving.AtomicCheckpointIO"},
            "checkpoint": {},
            "path": path,
        },
        "our renaming": {"_target_": "twoview.run.atomic.replace_durably", "part": "/etc/hostname.none", "path": path},
        "our run": {"_target_": "twoview.train.pretrain.run", "config": {}, "run_dir": path},
        "our plot": {"_target_": "twoview.report.theme.write_plot", "path": path, "plot": None},
        "pathlib": {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [path]}},
        "pickle": {"_target_": "pickle.loads", "_args_": ["cos\nsystem\n"]},
        "torch.load": {"_target_": "torch.load", "f": path, "weights_only": False},
        "torch.hub": {"_target_": "torch.hub.load", "repo_or_dir": "a/b", "model": "c"},
        "import of a module": {"_target_": "antigravity"},
        "in a list": {"_target_": "twoview.encoder.small.Small", "widths": [{"_target_": "os.system"} | touch]},
        "in arguments": {"_target_": "twoview.encoder.small.Small", "_args_": [{"_target_": "os.system"} | touch]},
        "deep": {"_target_": "twoview.encoder.small.Small", "a": {"b": [[{"c": {"_target_": "os.system"} | touch}]]}},
        "resolver": {"_target_": "twoview.encoder.small.Small", "widths": "${oc.env:HOME}"},
        "resolver in the target": {"_target_": "${oc.decode:os.system}"} | touch,
        "resolver in a key": {"_target_": "twoview.encoder.small.Small", "${oc.env:HOME}": 1},
        "nested resolver": {"_target_": "twoview.encoder.small.Small", "widths": "$${${oc.env:HOME}}"},
        "spaces": {"_target_": " os.system"} | touch,
        "trailing dot": {"_target_": "twoview."} | touch,
        "dunder": {"_target_": "twoview.encoder.small.Small.__init__.__globals__"} | touch,
        "a number": {"_target_": 3},
        "null": {"_target_": None},
        "a list": {"_target_": ["os.system"]},
        "a section": {"_target_": {"_target_": "os.system"}},
    }


COMMANDS = {"knn": "ckpt=evil", "linear_probe": "ckpt=evil", "train": "resume=evil"}
SECTIONS = {
    "knn": ("encoder", "data"),
    "linear_probe": ("encoder",),
    "train": ("encoder", "model", "trainer", "augment"),
}


def configurations() -> Iterator[tuple[Any, ...]]:
    """Every attack in one place, and the first in every place."""
    places = [
        (name, section, form)
        for name, sections in SECTIONS.items()
        for section, form in itertools.product(sections, ("last.ckpt", "encoder.safetensors"))
        if name != "train" or form == "last.ckpt"
    ]
    for number, attack in enumerate(attacks(Path())):
        for name, section, form in places if number == 0 else [places[number % len(places)]]:
            yield f"{attack}, {section} of {form}, {name}", attack, name, section, form


@pytest.mark.parametrize(
    ("case", "attack", "name", "section", "form"), table("configurations of strangers", configurations(), 8)
)
def test_configurations_of_strangers_call_nothing(
    finished: Path, tmp_path: Path, canary: Path, command: Callable[..., Any],
    case: str, attack: str, name: str, section: str, form: str,
) -> None:  # fmt: skip
    folder = tmp_path / "evil"
    folder.mkdir()
    checkpoint = read_checkpoint(finished)
    about = copy.deepcopy(checkpoint["twoview"])
    about["config"][section] = attacks(canary)[attack]
    if form == "last.ckpt":
        torch.save(checkpoint | {"twoview": about}, folder / form)
    else:
        weights, text = load_file(finished / form), json.dumps(about)
        save_file(weights, folder / form, metadata={"twoview": text, "sha256": _checksum(weights, text)})
    refused(command(f"{COMMANDS[name]}/{form}", name=name), form)
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [form]


# Checkpoints whose insides are wrong, walked key by key.


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(node, dict) and len(path) < 4:
        for key, value in node.items():
            yield from places(value, (*path, key))


# Of the stored description: what a score is made from.
ABOUT = [
    ("format",), ("config",), ("config", "encoder"), ("config", "encoder", "_target_"), ("config", "encoder", "widths"),
    ("config", "data"), ("config", "data", "_target_"), ("config", "data", "size"), ("config", "seed"),
    ("preprocess",), ("preprocess", "_target_"), ("preprocess", "mean"), ("preprocess", "std"), ("shape",),
]  # fmt: skip
WRONG: dict[str, Any] = {
    "missing": None,
    "null": None,
    "text": "wrong",
    "negative": -1,
    "huge": 10**30,
    "empty list": [],
    "list of text": ["a"],
    "section": {"a": {}},
    "not a number": float("nan"),
    "infinite list": [float("inf")] * 3,
    "zeros": [0.0] * 3,
}


@pytest.mark.parametrize(
    ("case", "place", "kind", "form"),
    table(
        "descriptions in checkpoints",
        [
            (f"{'.'.join(place)} {kind}, {form}", place, kind, form)
            for (place, kind), form in zip(
                itertools.product(ABOUT, WRONG), itertools.cycle(("last.ckpt", "encoder.safetensors"))
            )
        ],
        8,
    ),
)
def test_wrong_descriptions_are_refused_or_do_not_matter(
    finished: Path, tmp_path: Path, command: Callable[..., Any], case: str, place: tuple[str, ...], kind: str, form: str
) -> None:
    checkpoint = read_checkpoint(finished)
    about = copy.deepcopy(checkpoint["twoview"])
    node = about
    for key in place[:-1]:
        node = node[key]
    if kind == "missing":
        node.pop(place[-1], None)
    else:
        node[place[-1]] = WRONG[kind]
    path = tmp_path / form
    if form == "last.ckpt":
        torch.save(checkpoint | {"twoview": about}, path)
    else:
        weights, text = load_file(finished / form), json.dumps(about)
        save_file(weights, path, metadata={"twoview": text, "sha256": _checksum(weights, text)})
    ended = command(f"ckpt={form}", name="knn")
    assert ended.code in (0, 1)
    if ended.code == 1:
        assert "debug=true" not in ended.error, ended.error
        assert len(ended.error) < 900
        assert not (tmp_path / "knn.json").exists()
    else:
        assert 0 <= json.loads((tmp_path / "knn.json").read_text())["top1"] <= 1


# Pickles and files of torch.


class Touches:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def legacy_tar(bomb: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(bomb)
            tar.addfile(entry, io.BytesIO(bomb))
    return file.getvalue()


def zipped(bomb: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (("archive/data.pkl", bomb), ("archive/version", b"3\n"), ("archive/byteorder", b"little")):
            archive.writestr(name, data)
    return file.getvalue()


def torchscript(bomb: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (("a/data.pkl", bomb), ("a/constants.pkl", bomb), ("a/version", b"3\n")):
            archive.writestr(name, data)
    return file.getvalue()


def traversing_zip(bomb: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../canary", b"x")
        archive.writestr("archive/data.pkl", bomb)
    return file.getvalue()


def zip_bomb(bomb: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**27))
    return file.getvalue()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "bare pickle": bytes,
    "zip as torch writes": zipped,
    "tar as torch wrote": legacy_tar,
    "script archive": torchscript,
    "names that climb": traversing_zip,
    "zip bomb": zip_bomb,
    "pickle after a valid start": lambda bomb: b"\x80\x02]q\x00." + bomb,
}


@pytest.mark.parametrize(
    ("case", "form", "name", "file"),
    table(
        "pickles as checkpoints",
        [
            (f"{form} in {file}, {name}", form, name, file)
            for form, (name, file) in itertools.product(
                FORMS, (("knn", "last.ckpt"), ("train", "last.ckpt"), ("knn", "encoder.safetensors"))
            )
        ],
        6,
    ),
)
def test_pickles_are_not_executed(
    tmp_path: Path, canary: Path, command: Callable[..., Any], case: str, form: str, name: str, file: str
) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / file).write_bytes(FORMS[form](pickle.dumps(Touches(canary))))
    words = [f"resume=evil/{file}"] if name == "train" else [f"ckpt=evil/{file}"]
    refused(command(*words, name=name), file)


@pytest.mark.parametrize(
    ("name", "checksum"),
    table(
        "pickles as CIFAR",
        [(f"{name}{' of cifar100' * (root == 'cifar-100-python')}", root)
         for root, names in (("cifar-10-batches-py", ("data_batch_1", "data_batch_5", "test_batch", "batches.meta")),
                             ("cifar-100-python", ("train", "test", "meta")))
         for name in names],
        3,
    ),
)  # fmt: skip
def test_batches_without_the_right_checksum_are_not_unpickled(
    tmp_path: Path, canary: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, checksum: str
) -> None:
    name = name.split()[0]
    files = datasets.CIFAR10 if checksum == "cifar-10-batches-py" else datasets.CIFAR100
    folder = tmp_path / "data" / checksum
    folder.mkdir(parents=True)
    entries = {}
    for file in [*(n for n, _ in (*files.train_list, *files.test_list)), files.meta["filename"]]:
        data = pickle.dumps(Touches(canary) if file == name else {"data": np.zeros((1, 3072), np.uint8), "labels": [0]})
        (folder / file).write_bytes(data)
        entries[file] = hashlib.md5(data).hexdigest() if file != name else "0" * 32
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(files, attribute, [(n, entries[n]) for n, _ in getattr(files, attribute)])
    monkeypatch.setattr(files, "meta", files.meta | {"md5": entries[files.meta["filename"]]})
    option = "cifar10" if files is datasets.CIFAR10 else "cifar100"
    words = [word for word in SMALL if word != "knn=null"]
    if name.startswith("test"):  # read only where something is scored on it: the train split must be whole before
        from twoview.data.image import cifar as cifar10

        with pytest.raises(Exception, match="wrong checksum"):
            getattr(cifar10, option)(tmp_path / "data", "test")
    else:
        refused(command(f"data={option}", "data.root=data", *words), name)
    assert not canary.exists()


# Archives.


def climbing(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        entry.size = 1 if kind == tarfile.REGTYPE else 0
        tar.addfile(entry, io.BytesIO(b"x"))

    return add


BATCH = "cifar-10-batches-py/data_batch_1"
# what is in the archive beside the files, or in the place of one, and whether the download fails
ARCHIVES: list[tuple[str, Callable[[tarfile.TarFile], None], bool]] = [
    ("a path above", climbing("../canary"), False),
    ("a path far above", climbing("cifar-10-batches-py/../../canary"), False),
    ("an absolute path", climbing("/tmp/twoview-canary"), False),
    ("a link out and a file through it", lambda tar: [
        climbing("cifar-10-batches-py/out", tarfile.SYMTYPE, "../..")(tar),
        climbing("cifar-10-batches-py/out/canary")(tar),
    ], False),
    ("a batch that is a link", climbing(BATCH, tarfile.SYMTYPE, "/etc/passwd"), True),
    ("a batch that is a hard link", climbing(BATCH, tarfile.LNKTYPE, "../canary"), True),
    ("a batch that is a device", climbing(BATCH, tarfile.CHRTYPE), True),
    ("a batch that is a pipe", climbing(BATCH, tarfile.FIFOTYPE), True),
    ("a batch that is a folder", climbing(BATCH, tarfile.DIRTYPE), True),
    ("a device beside", climbing("cifar-10-batches-py/null", tarfile.CHRTYPE), False),
]  # fmt: skip


@pytest.mark.parametrize(("case", "add", "fails"), table("archives", ARCHIVES, 3))
def test_archives_write_their_files_and_no_other(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, case: str,
    add: Callable[[tarfile.TarFile], None], fails: bool,
) -> None:  # fmt: skip
    """As bad as can be: the archive has the right checksum."""
    from twoview.data.image.cifar import CIFAR10, _download
    from twoview.errors import UserError

    names = [name for name, _ in (*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list)] + ["batches.meta"]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in names:
            if not (fails and f"cifar-10-batches-py/{name}" == BATCH):
                climbing(f"cifar-10-batches-py/{name}")(tar)
        add(tar)

    class Response(io.BytesIO):
        length, url = None, datasets.CIFAR10.url

    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(file.getvalue()).hexdigest())
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Response(file.getvalue()))
    root = tmp_path / "root" / "data"
    if fails:
        with pytest.raises(UserError, match=r"downloading CIFAR-10 .*failed.*data_batch_1"):
            _download(CIFAR10, root)
        assert not list(root.iterdir())
    else:
        _download(CIFAR10, root)
        assert {path.name for path in (root / "cifar-10-batches-py").iterdir()} == set(names)
        assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["data"]
    assert not Path("/tmp/twoview-canary").exists()


# Images and tables that unpack to more than they are.


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises that much."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(2**20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bmp_of(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def gif_of(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("P", (1, 1)).save(file, "GIF")
    data = bytearray(file.getvalue())
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def text_bomb() -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("a", "x" * 2**26, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


BOMBS: list[tuple[str, Callable[[], bytes]]] = [
    ("20000x20000.png", lambda: png_of(20_000, 20_000)),
    ("2000000000x1.png", lambda: png_of(2_000_000_000, 1)),
    ("2000000000x2000000000.png", lambda: png_of(2_000_000_000, 2_000_000_000)),
    ("0x0.png", lambda: png_of(0, 0)),
    ("30000x30000.bmp", lambda: bmp_of(30_000, 30_000)),
    ("negative.bmp", lambda: bmp_of(-5, 8)),
    ("65535x65535.gif", lambda: gif_of(65535, 65535)),
    ("text.png", text_bomb),
]


@pytest.mark.parametrize(
    ("case", "name", "make", "kind"),
    table(
        "decompression bombs",
        [
            (f"{name} in {kind}", name, make, kind)
            for (name, make), kind in itertools.product(BOMBS, ("folder", "parquet"))
        ],
        4,
    ),
)  # fmt: skip
def test_bombs_do_not_go_off(
    tmp_path: Path, command: Callable[..., Any], case: str, name: str, make: Callable[[], bytes], kind: str
) -> None:
    good = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(good, "PNG")
    root = tmp_path / "data"
    root.mkdir()
    files = {f"{i}.png": good.getvalue() for i in range(7)} | {name: make()}
    if kind == "folder":
        for file, data in files.items():
            (root / file).write_bytes(data)
    else:
        pq.write_table(pa.table({"image": list(files.values())}), root / "train.parquet")
    option = "image_folder" if kind == "folder" else "parquet"
    extra = ["data.label_column=null"] if kind == "parquet" else []
    refused(
        command(f"data={option}", "data.root=data", "data.size=8", *extra, *SMALL),
        name if kind == "folder" else "row 7",
    )
    assert not list(tmp_path.rglob("*.ckpt"))


# Metadata of safetensors.


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def with_metadata(metadata: dict[str, str]) -> bytes:
    header = {"__metadata__": metadata, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    return safetensors(json.dumps(header).encode()) + bytes(4)


HEADERS: list[tuple[str, Callable[[], bytes]]] = [
    ("length beyond the file", lambda: safetensors(b"{}", 2**40)),
    ("length of 64 bits", lambda: safetensors(b"{}", 2**64 - 1)),
    ("length of none", lambda: safetensors(b"", 0)),
    ("no JSON", lambda: safetensors(b"[" * 100)),
    ("nested deeply", lambda: safetensors(b"[" * 100_000)),
    ("bytes that are no text", lambda: safetensors(b"\xff\xfe{}")),
    ("offsets beyond the file", lambda: safetensors(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}')),
    ("offsets that overlap", lambda: safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    ) + bytes(4)),
    ("negative shape", lambda: safetensors(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}') + bytes(4)),
    ("huge shape", lambda: safetensors(
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'
    ) + bytes(4)),
    ("unknown type", lambda: safetensors(b'{"a":{"dtype":"Q7","shape":[1],"data_offsets":[0,4]}}') + bytes(4)),
    ("no metadata", lambda: safetensors(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') + bytes(4)),
    ("metadata of others", lambda: with_metadata({"format": "pt"})),
    ("ours empty", lambda: with_metadata({"twoview": ""})),
    ("ours a number", lambda: with_metadata({"twoview": "3"})),
    ("ours null", lambda: with_metadata({"twoview": "null"})),
    ("ours a list", lambda: with_metadata({"twoview": "[]"})),
    ("ours nested deeply", lambda: with_metadata({"twoview": "[" * 100_000})),
    ("ours nested deeply in sections", lambda: with_metadata({"twoview": '{"a":' * 50_000})),
    ("ours without encoder", lambda: with_metadata({"twoview": '{"config": {}, "preprocess": {}}'})),
    ("ours of long numbers", lambda: with_metadata({"twoview": "9" * 100_000})),
    ("ours with markup", lambda: with_metadata({"twoview": '{"config": "<script>"}'})),
]  # fmt: skip


@pytest.mark.parametrize(("case", "make"), table("headers of safetensors", HEADERS, 8))
def test_headers_of_safetensors_are_checked(
    tmp_path: Path, command: Callable[..., Any], case: str, make: Callable[[], bytes]
) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(make())
    refused(command("ckpt=encoder.safetensors", name="knn"), "encoder.safetensors")
