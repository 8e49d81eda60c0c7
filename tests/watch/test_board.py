"""TensorBoard's file: curves in groups with what they mean, a layout, the run in words, and its final numbers."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as of_hparams

from twoview.train import pretrain
from twoview.watch.board import FINAL, MEANINGS, PLACES, layout, place
from twoview.watch.meter import QUALITIES


@pytest.fixture(scope="module")
def run(compose: Callable[..., dict[str, Any]], tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs with a kNN in each and two readings of quality."""
    folder = tmp_path_factory.mktemp("board")
    pretrain.run(compose(*tiny, "epochs=4", "quality.every_epochs=2", "quality.images=32"), folder)
    return folder


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def column(run: Path, name: str) -> list[tuple[int, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row[name]]


def test_every_reading_is_a_curve_in_a_group(run: Path, events: EventAccumulator) -> None:
    scalars = set(events.Tags()["scalars"])
    assert {tag.split("/")[0] for tag in scalars} == {"loss", "accuracy", "evaluation", "representation", "speed"}
    for name in ("loss", "chance_loss", "accuracy", "knn", "images_per_second"):
        found = [(event.step, event.value) for event in events.Scalars(place(name))]
        assert found == [(step, pytest.approx(value, rel=1e-5)) for step, value in column(run, name)]


def test_two_points_are_no_curve(run: Path, events: EventAccumulator) -> None:
    """What was read twice stands there once, with its last number."""
    assert len(column(run, "h_rankme")) == 2
    for tag in events.Tags()["scalars"]:
        assert len(events.Scalars(tag)) != 2, tag
    [last] = events.Scalars("representation/h/rankme")
    assert last.value == pytest.approx(column(run, "h_rankme")[-1][1], rel=1e-5)


def test_every_curve_says_what_it_means(events: EventAccumulator) -> None:
    for tag in events.Tags()["scalars"]:
        assert len(events.SummaryMetadata(tag).summary_description) > 10, tag
    assert set(PLACES) | set(QUALITIES) <= set(MEANINGS)


def test_the_layout_names_what_there_is_and_the_loss_first(events: EventAccumulator) -> None:
    found = layout_pb2.Layout()
    found.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = [(category.title, chart) for category in found.category for chart in category.chart]
    title, first = charts[0]
    assert (title, list(first.multiline.tag)) == ("loss", ["^loss/loss$", "^loss/chance_loss$"])
    named = {tag.strip("^$") for _, chart in charts for tag in chart.multiline.tag}
    assert named <= set(events.Tags()["scalars"])
    assert [category.title for category in found.category] == list(layout())


def test_the_run_in_words(run: Path, events: EventAccumulator) -> None:
    def text(tag: str) -> str:
        lines = events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode().splitlines()
        assert all(line.startswith("    ") for line in lines)  # Markdown shows it as it is
        return "\n".join(line[4:] for line in lines)

    assert yaml.safe_load(text("run/configuration")) == yaml.safe_load((run / "config.yaml").read_text())
    assert text("run/command")


def test_the_final_numbers_stand_beside_the_settings(run: Path, events: EventAccumulator) -> None:
    contents = {
        tag: metadata.plugin_data.content
        for tag, metadata in events.summary_metadata.items()
        if metadata.plugin_data.plugin_name == of_hparams.PLUGIN_NAME
    }
    start = of_hparams.parse_session_start_info_plugin_data(contents[of_hparams.SESSION_START_INFO_TAG])
    assert start.hparams["batch_size"].number_value == 64
    assert start.hparams["model.temperature"].number_value == 0.5
    assert start.hparams["model"].string_value == "SimCLR"
    assert start.hparams["augment.strength"].number_value == 0.5
    experiment = of_hparams.parse_experiment_plugin_data(contents[of_hparams.EXPERIMENT_TAG])
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics == [place(name) for name in FINAL]
    for name in FINAL:
        assert events.Scalars(place(name))[-1].value == pytest.approx(column(run, name)[-1][1], rel=1e-5)
