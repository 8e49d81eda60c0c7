"""The card as files: `card.html` for people, `card.json` for programs, and a PNG of each figure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twoview.card import figures, pictures, scores
from twoview.card.figures import NAMES, Content, among
from twoview.card.measures import OTHER, RUN, UNTRAINED
from twoview.card.provenance import provenance
from twoview.card.tables import Card, Row, missing, share_words
from twoview.data.demand import shape_words
from twoview.report.curves import curves
from twoview.report.page import Cell, Page, Section
from twoview.report.theme import write_plot
from twoview.report.words import NBSP, in_points, number, p_words, percent, span
from twoview.run.atomic import save

QUALITY = {  # rows of the table: words, digits
    "alignment": ("alignment of positives", 3),
    "uniformity": ("uniformity", 2),
    "positive_similarity": ("mean cosine of positives", 3),
    "negative_similarity": ("mean cosine of different images", 3),
    "contrastive_accuracy": ("contrastive accuracy", 3),
    "rankme": ("RankMe", 1),
    "effective_rank": ("effective rank", 1),
    "participation_ratio": ("participation ratio", 1),
    "feature_std_relative": ("std of a dimension × √D", 2),
    "feature_correlation": ("mean |correlation| of dimensions", 3),
    "dim": ("dimensions D", 0),
}
FOOT = (
    "Intervals hold 95 %. Every number of an untrained encoder is that of the same network with the weights "
    "that the run started from."
)
QUALITY_NOTE = (
    "Alignment: mean squared distance of positives on the unit sphere; uniformity: −4 + 8/D where features cover it "
    "(Wang & Isola 2020). Ranks: how many dimensions carry the variance, of D. Contrastive accuracy: how often the "
    "other view is the nearest of all."
)


def write(folder: Path, content: Content, shown: Mapping[str, Any]) -> None:
    """Writes `card.json`, `card.html` and the figures into the folder."""
    card = Card(content, shown)
    page = compose(card)
    save(folder / "card.json", json.dumps(content, indent=1) + "\n")
    for name, plot in card.plots.items():
        write_plot(folder / f"{name}.png", plot)
    page.write(folder / "card.html")


def compose(card: Card) -> Page:
    content = card.content
    size = shape_words(content["shape"])
    network = f"{content['network']} ({content['dim']} features)"
    about = f"Evaluation card of {content['name']}: {network}, samples of {size}"
    page = Page(f"{content['method']} on {content['data']}", f"{about} · {content['made'][:10]}", FOOT)
    _head(card, page)
    if "linear" not in content:
        _features(card, page)
    scores.accuracy(card, page.section("Accuracy"))
    if "few_labels" in content:
        scores.few_labels(card, page.section("With few labels"))
    if content.get("transfer"):
        scores.transfer(card, page.section("On other data"))
    if "robustness" in content:
        scores.robustness(card, page.section("On corrupted images"))
    if "linear" in content:
        scores.calibration(card, page.section("Calibration"))
        scores.classes(card, page.section("Class by class"))
    if "linear" in content:
        _features(card, page)
    if {"quality", "invariance"} & content.keys():
        _representation(card, page.section("The representation itself"))
    _training(card, page.section("Training"))
    provenance(page.section("Where these numbers come from"), content)
    return page


def _features(card: Card, page: Page) -> None:
    if "neighbours" in card.shown:
        _neighbours(card, page.section("Nearest neighbours"))
    if "maps" in card.shown:
        _maps(card, page.section("Map of the features"))


def _head(card: Card, page: Page) -> None:
    content = card.content
    if "linear" in content:
        own, fresh = content["linear"][RUN], content["linear"][UNTRAINED]
        page.lead(
            f"A linear classifier on the frozen features gets {percent(own['top1'])}{NBSP}% "
            f"{span(own['interval'])} of {own['test_size']:,} test images right; on an untrained encoder "
            f"{percent(fresh['top1'])}{NBSP}%."
        )
        if OTHER in content["linear"]:
            page.paragraph(_verdict(card))
    elif card.shown.keys() & {"neighbours", "maps"}:
        page.lead("What the encoder finds alike, without labels: the nearest images of some, and a map of many.")
    else:
        page.lead(f"No accuracy can be given: {content['missing']['linear'].rstrip('.')}.")
    for caveat in content["caveats"]:
        page.notice(caveat)
    if numbers := _numbers(card):
        page.numbers(numbers)


def _verdict(card: Card) -> str:
    gap = card.content["paired"]["linear"][OTHER]
    points = f"{in_points(abs(gap['difference'])).lstrip('+')} points {span(gap['interval'], in_points)}"
    counts = f"{gap['only_first']:,} test images only this run gets right, {gap['only_second']:,} only the other one"
    if gap["p"] >= 0.05:
        return f"The other run is not told apart from it: {points}; {counts} (McNemar, p = {gap['p']:.2g})."
    word = "better" if gap["difference"] > 0 else "worse"
    return f"It is {word} than the other run by {points}: {counts} (McNemar, {p_words(gap['p'])})."


def _numbers(card: Card) -> list[tuple[str, str]]:
    content, found = card.content, []

    def add(share: float, label: str, fresh: float) -> None:
        found.append((f"{percent(share)} %", f"{label} (untrained {percent(fresh)}{NBSP}%)"))

    if "linear" in content:
        add(content["linear"][RUN]["top1"], "linear probe", content["linear"][UNTRAINED]["top1"])
    if "knn" in content:
        add(content["knn"][RUN]["top1"], f"kNN, k = {content['knn']['fixed'][0]}", content["knn"][UNTRAINED]["top1"])
    if "few_labels" in content:
        first = next((e for e in content["few_labels"]["fractions"] if RUN in e and e["fraction"] < 1), None)
        if first:
            add(first[RUN]["mean"], f"with {share_words(first['fraction'])} of the labels", first[UNTRAINED]["mean"])
    if "robustness" in content:
        add(content["robustness"][RUN]["mean"], "on corrupted images", content["robustness"][UNTRAINED]["mean"])
    return found


def _neighbours(card: Card, section: Section) -> None:
    shown = card.shown["neighbours"]
    marked = bool(card.content["classes"]) and "linear" in card.content
    first = ", the first of each class in a fixed random order" if shown[0].name else ", drawn once for all encoders"
    text = f"Left: test images{first}. Right of each: the training images "
    text += "whose features have the highest cosine with its own, the nearest first."
    if marked:
        text += " Solid blue frame: of the same class; dashed orange: of another."
        parts = [
            f"{pictures.right_share(shown, name)} for {NAMES[name]}" for name in NAMES if name in shown[0].neighbours
        ]
        section.paragraph(f"Neighbours of the same class: {', '.join(parts)}.")
    card.figure(section, "neighbours", pictures.neighbours(shown), "Test images with their nearest neighbours", text)


def _maps(card: Card, section: Section) -> None:
    found = card.shown["maps"]
    n = len(found[RUN][0].points)
    text = f"Unit features of {n:,} test images in two dimensions"
    text += ", coloured by class; the map is made without labels." if card.content["classes"] else "."
    if not any(len(maps) > 1 for maps in found.values()):
        text += " With scikit-learn installed, t-SNE stands beside it."
    draw = pictures.maps(found, card.content["classes"])
    card.figure(section, "map", draw, "Features of test images in two dimensions", text)
    section.paragraph("The same images can be walked through in TensorBoard's projector:")
    section.code("tensorboard --logdir <this folder>/projector")


def _representation(card: Card, section: Section) -> None:
    content = card.content
    if "quality" in content:
        found = content["quality"]
        section.paragraph(
            f"Measured on {found['images']:,} pairs of views of test images, made by the run's own policy: h is what "
            "the encoder gives, z what the projection head makes of it for the loss."
        )
        columns = [(name, space) for name in among(found) for space in ("h", "z") if space in found[name]]
        rows: list[Row] = []
        for key, (words, digits) in QUALITY.items():
            rows.append([words, *[number(found[name][space].get(key), digits) for name, space in columns]])
        head: list[str | Cell] = ["", *[Cell(space, NAMES[name]) for name, space in columns]]
        section.table(head, rows, "l" + "r" * len(columns), QUALITY_NOTE)
    if "invariance" in content:
        found = content["invariance"]
        card.figure(
            section, "invariance", figures.invariance(found), "Similarity of an image and its transform",
            f"What the features ignore. Cosine of an image and its transform as the transform grows, mean of "
            f"{found['images']:,} test images: 1, nothing has changed; 0, as unlike as two different "
            "images. By colour: h and z; by line: the encoders.",
        )  # fmt: skip


def _training(card: Card, section: Section) -> None:
    if "curves" in card.shown:
        card.figure(
            section, "curves", curves(card.shown["curves"]), "Loss and accuracy over the epochs",
            "The run's metrics.csv: the pretext task, and what it is worth.",
        )  # fmt: skip
    else:
        section.paragraph(missing(card.content, "curves"))
    doctor = card.content.get("doctor")
    if doctor:
        section.paragraph(f"The run doctor says: {doctor['verdict']} ({doctor['state']}).")
        for finding in doctor["findings"]:
            section.notice(f"{finding['name']}: {finding['cause']}. Try: {finding['remedy']}")
