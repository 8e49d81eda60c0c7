"""What the end-to-end tests share: the real configurations shrunk, one finished run, and commands run in process."""

import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from twoview.cli.configs import CONFIGS
from twoview.cli.entry import plain
from twoview.cli.program import SCRIPTS, script_of
from twoview.commands import run
from twoview.train import pretrain

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` would have every process of the tests ignore it
torch.set_num_threads(1)
if not os.environ.get("TWOVIEW_DATA", "unset"):
    del os.environ["TWOVIEW_DATA"]  # set to nothing is unset, as it is for the commands
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # for the processes that tests start

ROOT = CONFIGS.parent
SMALLEST = ("encoder=small", "encoder.widths=[4,4,8,8]")  # of the encoder that is made for CPUs
TINY = (
    "data=shapes",
    "data.n_train=256",
    "data.n_test=64",
    "data.size=16",
    *SMALLEST,
    "model.projector.hidden_dim=16",
    "batch_size=64",
    "epochs=2",
    "log_every_steps=3",  # of four steps an epoch: readings fall between the ends of epochs
    "trainer=cpu",
    "knn.every_epochs=1",
)
SOUNDS = ("data=fsdd", "data.seconds=0.16", "encoder.channels=1", "data.mel.bands=16")  # with `spoken` as data.root
ROWS = ("data=table", "encoder=mlp", "encoder.inputs=23", "encoder.widths=[8,8]")  # with `rows` as data.root
TEXTS = ("data=text", "augment=text", "encoder=bag", "encoder.width=8")  # with `sentences` as data.root
WORDS = {
    script: command for command, script in SCRIPTS.items()
}  # commands by the name of their script, if it is another


def command_of(name: str) -> str:
    """The command that a name means: its own, or that of its script."""
    return WORDS.get(name, name)


@dataclass
class Ended:
    """A command that came to its end."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one message of a command that failed."""
        assert self.code == 1, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.err + self.out
        lines = self.err.splitlines()
        assert [line.startswith("error: ") for line in lines] == [True], f"not one message: {self.err!r}"
        return lines[0].removeprefix("error: ")


def compose_config(*overrides: str, name: str = "train") -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return plain(hydra.compose(command_of(name), overrides=list(overrides)))


@pytest.fixture(scope="session")
def compose() -> Callable[..., dict[str, Any]]:
    """`compose("epochs=3", ..., name="train")`: a configuration from `configs/`, resolved, as plain containers."""
    return compose_config


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides that make `train.py` a matter of a second."""
    return list(TINY)


@pytest.fixture(scope="session")
def smallest() -> list[str]:
    """Overrides for the smallest encoder."""
    return list(SMALLEST)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished tiny run, for reading only: copy it to change it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    summary = pretrain.run(compose_config(*TINY), folder)
    assert summary == json.loads((folder / "summary.json").read_text())
    return folder


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """`command("epochs=0", ..., name="train")`: a command of the project in this process, in the folder `tmp_path`."""

    def call(*words: str, name: str = "train") -> Ended:
        GlobalHydra.instance().clear()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(ROOT / script_of(command_of(name))), *words])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        root = logging.getLogger()
        handlers, root.handlers = root.handlers, []
        level = root.level
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as end, warnings.catch_warnings():
                run(command_of(name))
        finally:
            root.handlers, root.level = handlers, level
            GlobalHydra.instance().clear()
        out, err = capsys.readouterr()
        code = end.value.code
        return Ended(code if isinstance(code, int) else 1, out, err)

    return call


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are built and saved blank: to draw those of a report takes longer than the tiny runs that it is about."""

    def blank(self: Any, file: Any, **_: Any) -> None:
        file.write(b"<svg xmlns='http://www.w3.org/2000/svg'/>")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", blank)


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Parquet files like those of spoken digits: ten classes of noisy tones, said by three speakers."""
    soundfile, pa = pytest.importorskip("soundfile"), pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder, generator = tmp_path_factory.mktemp("fsdd"), np.random.default_rng(0)
    for split, rows in (("train", 60), ("test", 30)):
        columns: dict[str, list[Any]] = {"audio": [], "label": [], "speaker": []}
        for row in range(rows):
            seconds = np.arange(generator.integers(500, 900)) / 8000
            wave = 0.3 * np.sin(2 * np.pi * (300 + 300 * (row % 10)) * seconds)
            file = io.BytesIO()
            soundfile.write(file, wave + 0.02 * generator.standard_normal(len(wave)), 8000, format="FLAC")
            columns["audio"].append({"bytes": file.getvalue(), "path": f"{row}.flac"})
            columns["label"].append(row % 10)
            columns["speaker"].append(("george", "jackson", "theo")[row // 10 % 3])
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts in two CSV files, of two classes that have words of their own, and words in common."""
    folder, generator = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    own = (["card", "lost", "stolen", "block"], ["money", "transfer", "account", "send"])
    common = ["please", "i", "my", "the", "can", "you", "help", "today"]
    for split, n in (("train", 80), ("test", 30)):
        lines = ["text,label"]
        for row in range(n):
            words = [*generator.choice(own[row % 2], 3), *generator.choice(common, 3)]
            generator.shuffle(words)
            lines.append(f"{' '.join(words).capitalize()}?,{('card', 'transfer')[row % 2]}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in two CSV files: two numbers, of which one is missing at times, and a category; two classes."""
    folder, generator = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    for split, n in (("train", 80), ("test", 30)):
        lines = ["size,age,town,label"]
        for row in range(n):
            age = "" if row % 10 == 3 else f"{generator.normal():.3f}"
            town = ("Bern", "Basel", "Chur")[generator.integers(3)]
            lines.append(f"{generator.normal() + 3 * (row % 2):.3f},{age},{town},{('no', 'yes')[row % 2]}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def bert(sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT of transformers', drawn at random, and a tokenizer of the words in `sentences`."""
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    folder, signs = tmp_path_factory.mktemp("bert"), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    own.normalizer = tokenizers.normalizers.Lowercase()
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.train([str(sentences / "train.csv")], tokenizers.trainers.WordLevelTrainer(special_tokens=signs))
    own.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{sign[1:-1].lower()}_token": sign for sign in signs}
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, **names).save_pretrained(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=own.get_vocab_size(), max_position_embeddings=40, **size)
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder
