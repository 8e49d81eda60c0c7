"""The playground's answers: views that training makes, parameters that made them, cosines, and a server of its own."""

import base64
import io
import json
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from twoview.augment.views import TwoViews
from twoview.cli import schema
from twoview.cli.configs import compose as composed_by
from twoview.commands.play import scene_of
from twoview.errors import UserError
from twoview.play.policy import resolved
from twoview.play.scene import MOST, Scene
from twoview.play.server import application, listening, server
from twoview.run.checkpoint import load_encoder, load_projector

werkzeug_test = pytest.importorskip("werkzeug.test")

SHAPES = ["data=shapes", "data.n_train=80", "data.n_test=16", "data.size=16", "images=6", "seed=3"]


@pytest.fixture(scope="module")
def scene() -> Scene:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twoview.commands.play.overrides", list)
        return scene_of(composed_by("play", [*SHAPES, "augment=simclr_cifar"]).config)


def pixels(address: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def training_views(scene: Scene, policy: dict[str, Any], seed: int, epoch: int, numbers: list[int]) -> list[Any]:
    """Both views as bytes (B, H, W, C), by the way that a training takes, before they are normalised."""
    views: TwoViews = schema.build(resolved(policy), preprocess=scene.train.preprocess, seed=seed)
    index = torch.tensor(numbers)
    return [
        (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()  # type: ignore[union-attr]
        for x in views.prepared(scene.train.fetch(index), index, epoch)
    ]


def test_views_are_those_of_training(scene: Scene) -> None:
    found = scene.views({"samples": [7, 70], "seed": 5, "epoch": 2})
    expected = training_views(scene, scene.policy, 5, 2, [7, 70])
    for row, sample in enumerate(found["samples"]):
        for view in range(2):
            shown = pixels(sample["views"][view]["picture"])[::16, ::16]  # a pixel is a square of 16
            assert (shown == expected[view][row]).all()
    stored = scene.train.fetch(torch.tensor([7]))[0].permute(1, 2, 0)  # type: ignore[index]
    assert (pixels(found["samples"][0]["original"])[::16, ::16] == stored.numpy()).all()


def test_what_is_said_of_a_view_is_what_was_done(scene: Scene) -> None:
    """Of two policies that differ in one operation, views differ where it is said to have acted, and nowhere else."""
    numbers = list(range(12))
    wishes = {"samples": numbers, "ops": {"jitter": {"on": False}, "crop": {"on": False}, "flip": {"on": False}}}
    gray = scene.views(wishes)["samples"]
    none = scene.views(wishes | {"ops": wishes["ops"] | {"gray": {"on": False}}})["samples"]  # type: ignore[operator]
    acted = 0
    for with_gray, without in zip(gray, none, strict=True):
        for one, other in zip(with_gray["views"], without["views"], strict=True):
            assert [op["name"] for op in one["ops"]] == ["gray"]
            assert other["ops"] == []
            assert one["ops"][0]["acts"] == bool((pixels(one["picture"]) != pixels(other["picture"])).any())
            acted += one["ops"][0]["acts"]
    assert 0 < acted < 24


def test_boxes_and_overlap(scene: Scene) -> None:
    """A crop of all is the whole image, its pair overlaps whole; a box holds the share of the area that was asked."""
    whole = scene.views({"ops": {"crop": {"values": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]}}}})["samples"][0]
    assert whole["overlap"] == 1
    assert whole["views"][0]["box"] == {"top": 0, "left": 0, "height": 1, "width": 1}
    small = scene.views({"ops": {"crop": {"values": {"scale": [0.25, 0.25], "ratio": [1.0, 1.0]}}}})["samples"][0]
    for view in small["views"]:
        assert view["box"]["height"] * view["box"]["width"] == 0.25
    a, b = (view["box"] for view in small["views"])
    sides = [max(0, 0.5 - abs(a[key] - b[key])) for key in ("top", "left")]
    both = sides[0] * sides[1]
    assert small["overlap"] == pytest.approx(both / (0.5 - both))
    assert scene.views({"ops": {"crop": {"on": False}}})["samples"][0]["overlap"] is None


def test_the_scene_tells_the_page_what_there_is(scene: Scene) -> None:
    about = scene.about()
    assert about["count"] == 80
    assert [sample["number"] for sample in about["samples"]] == scene.samples.index.tolist()
    assert (about["strength"], about["follows"], about["seed"], about["encoder"]) == (0.5, True, 3, None)
    assert json.loads(json.dumps(about)) == about


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"samples": []}, f"choose 1 to {MOST}"),
        ({"samples": [0] * (MOST + 1)}, f"choose 1 to {MOST}"),
        ({"samples": [80]}, "from 0 to 79"),
        ({"samples": [True]}, "whole number"),
        ({"seed": -1}, "seed=-1 must be a whole number"),
        ({"epoch": 2**32}, "epoch="),
        ({"ops": {"crop": {"values": {"size": 4096}}}}, "more than 512 pixels"),
        ({"ops": {"crop": {"values": {"scale": [0.9, 0.1]}}}}, "smaller first"),
        ({"strength": 9}, "hue x strength must lie in"),
    ],
)
def test_what_cannot_be_shown_is_said(scene: Scene, wishes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        scene.views(wishes)
    assert says in str(refused.value)


@pytest.fixture(scope="module")
def judged(finished: Path) -> Scene:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twoview.commands.play.overrides", list)
        return scene_of(composed_by("play", [f"ckpt={finished}", "images=4"]).config)


def test_a_run_brings_its_data_its_policy_and_its_encoder(judged: Scene, finished: Path) -> None:
    encoder = load_encoder(finished)
    assert judged.about()["encoder"] == str(finished)
    assert resolved(judged.policy) == encoder.config["augment"]
    found = judged.pairs({"samples": [4, 9], "seed": 1, "epoch": 1})
    projector = load_projector(finished)
    assert projector is not None
    index = torch.tensor([4, 9])
    views: TwoViews = schema.build(encoder.config["augment"], preprocess=encoder.preprocess, seed=1)
    with torch.no_grad():
        h1, h2 = (encoder(x) for x in views.prepared(judged.train.fetch(index), index, 1))
        expected = {"h": (h1, h2), "z": (projector(h1), projector(h2))}
    assert set(found["spaces"]) == {"h", "z"}
    for space, (x1, x2) in expected.items():
        assert found["spaces"][space]["pairs"] == pytest.approx(cosine_similarity(x1, x2).tolist(), abs=1e-5)
    for values in found["spaces"].values():
        assert values["random"] == sorted(values["random"])
        assert -1 <= values["random"][0] <= values["mean"] <= values["random"][-1] <= 1 + 1e-6
        for own, above in zip(values["pairs"], values["above"], strict=True):
            near = np.mean(np.array(values["random"]) < own)  # of the pairs that are drawn
            assert abs(near - above) <= 0.02


def test_without_an_encoder_there_are_no_cosines(scene: Scene) -> None:
    with pytest.raises(UserError, match="ckpt="):
        scene.pairs({})


@pytest.fixture(scope="module")
def client(scene: Scene) -> Any:
    return werkzeug_test.Client(application(scene))


HOME = {"base_url": "http://127.0.0.1:8765"}


def test_pages_come_with_a_policy_that_lets_nothing_else_in(client: Any) -> None:
    for path, kind in (("/", "text/html"), ("/play.js", "text/javascript"), ("/play.css", "text/css")):
        answer = client.get(path, **HOME)
        assert answer.status_code == 200
        assert answer.mimetype == kind
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text), "nothing from elsewhere"
    assert client.get("/scene", **HOME).json["count"] == 80
    assert client.get("/../pyproject.toml", **HOME).status_code == 404


def test_only_this_machine_is_answered(client: Any) -> None:
    ask = {"data": "{}", "content_type": "application/json"}
    assert client.post("/views", **HOME, **ask).status_code == 200
    for host in ("http://evil.example", "http://127.0.0.1.evil.example:8765"):
        assert client.post("/views", base_url=host, **ask).status_code == 400
        assert client.get("/scene", base_url=host).status_code == 400
    assert client.post("/views", **HOME, data="{}", content_type="text/plain").status_code == 415  # what a form sends
    assert client.post("/views", **HOME, data=b" " * 2**17, content_type="application/json").status_code == 413


@pytest.mark.parametrize("data", ["{", "[]", '{"seed": NaN}', '{"seed": -1}', '{"ops": {"crop": 1}}', "[" * 60_000])
def test_nonsense_is_refused(client: Any, data: str) -> None:
    answer = client.post("/views", **HOME, data=data, content_type="application/json")
    assert answer.status_code == 400
    assert answer.json["error"]


@pytest.fixture(scope="module")
def address(scene: Scene) -> Iterator[str]:
    found = server(scene, 0)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.port}"
    found.shutdown()
    thread.join()
    found.server_close()


def test_it_listens_on_this_machine_alone(address: str, scene: Scene) -> None:
    with urllib.request.urlopen(f"{address}/scene", timeout=30) as answer:
        assert json.load(answer) == json.loads(json.dumps(scene.about()))
    port = int(address.rpartition(":")[2])
    with pytest.raises(UserError, match=f"port={port} cannot be used"):
        listening(port)


def test_the_command(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says where the page is, ends by ctrl-C with 0, and answers mistakes as the other commands do."""
    monkeypatch.chdir(tmp_path)
    seen = []

    def interrupted(self: Any) -> None:
        seen.append(self.server_address[0])
        raise KeyboardInterrupt

    monkeypatch.setattr("werkzeug.serving.ThreadedWSGIServer.serve_forever", interrupted)
    monkeypatch.setattr("webbrowser.open", seen.append)
    monkeypatch.delenv("DISPLAY", raising=False)
    ended = command("data=shapes", "data.n_train=80", "data.size=16", "port=0", name="play")
    assert ended.code == 0
    assert re.search(r"http://127\.0\.0\.1:\d+/", ended.out)
    assert seen == ["127.0.0.1"]


@pytest.mark.parametrize("word", ["images=0", "port=70000", "ckpt=nowhere", "augment.ops.crop.scale=[2,3]"])
def test_mistakes_are_answered(command: Callable[..., Any], word: str) -> None:
    ended = command("data.n_train=80", word, name="play")
    assert word.partition("=")[0].rpartition(".")[2] in ended.error


def test_rows_of_a_table_cannot_be_played_with(command: Callable[..., Any], rows: Path) -> None:
    assert "cannot be drawn" in command("data=table", f"data.root={rows}", "augment=table", name="play").error
