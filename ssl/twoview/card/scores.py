"""The sections of a card that need labels: how well classes can be read from the features."""

from collections.abc import Sequence

from twoview.card import figures
from twoview.card.figures import MANY, NAMES, among
from twoview.card.measures import RUN
from twoview.card.tables import PAIRED_NOTE, Card, interval_gap, missing, paired_gap, share_cell, share_words
from twoview.report.page import Cell, Section
from twoview.report.words import percent


def accuracy(card: Card, section: Section) -> None:
    content = card.content
    if "linear" not in content:
        section.paragraph(missing(content, "linear"))
        return
    linear, knn, rows = content["linear"], content.get("knn", {}), []
    rows.append(card.scores("linear probe", linear, content["paired"].get("linear", {})))
    ridge = {name: linear[name]["ridge"] for name in among(linear)}
    rows.append(card.scores("ridge", ridge, content["paired"].get("ridge", {})))
    if knn:
        label = Cell("kNN", f"k = {knn['fixed'][0]}, temperature {knn['fixed'][1]:g}")
        rows.append(card.scores(label, knn, content["paired"]["knn"]))
    if linear[RUN]["top5"] is not None:
        top5 = {name: {"top1": linear[name]["top5"]} for name in among(linear)}
        rows.append(card.scores("linear probe, top-5", top5, content["paired"].get("top5", {})))
    section.table(card.header("top-1, %"), rows, card.columns, PAIRED_NOTE)
    own = linear[RUN]
    section.paragraph(
        f"Chance is {percent(own['chance'])} %, always answering the largest class {percent(own['majority'])} %. "
        f"Protocol {own['protocol']} ({own['protocol_hash']}): {own['protocol_text']}."
    )
    if knn:
        card.figure(
            section, "knn", figures.knn(knn), "kNN accuracy for every number of neighbours and temperature",
            "kNN accuracy in percent by the number of neighbours k and the temperature of their weights "
            "exp(similarity / temperature). Outlined: the setting of the table, which was fixed beforehand; the best "
            "of the grid is chosen by the test set and flatters.",
        )  # fmt: skip


def few_labels(card: Card, section: Section) -> None:
    few, rows = card.content["few_labels"], []
    entries = [entry for entry in few["fractions"] if RUN in entry]
    if entries:
        card.figure(
            section, "few_labels", figures.few_labels(few, card.content["linear"][RUN]["chance"]),
            "Accuracy over the share of the labels", "Dots: draws of the labelled images; bars: 95 % interval. The "
            f"same {few['seeds']} draws for every encoder.",
        )  # fmt: skip
    for entry in few["fractions"]:
        label = Cell(share_words(entry["fraction"]), f"{entry['images']:,} images" if "images" in entry else "")
        if "missing" in entry:
            section.paragraph(f"{share_words(entry['fraction'])} of the labels: {entry['missing']}")
            continue
        cells = {n: share_cell(entry[n]["mean"], entry[n]["interval"], 2) for n in among(entry)}
        gaps = {n: interval_gap(entry[n]["difference"]) for n in card.others if n in entry}
        rows.append(card.row(label, cells, gaps))
    if rows:
        note = (
            f"Means over {few['seeds']} draws; intervals are over the draws, and differences paired by draw. With all "
            "labels there is one draw, and both are over the test images."
        )
        section.table(card.header("labels"), rows, card.columns, note)


def transfer(card: Card, section: Section) -> None:
    rows = []
    for name, found in card.content["transfer"].items():
        for score, label in (("linear", "linear probe"), ("knn", "kNN")):
            first = Cell(name, f"{label}, {found['classes']} classes")
            rows.append(card.scores(first, found[score], found["paired"][score]))
    section.table(card.header("top-1, %"), rows, card.columns, PAIRED_NOTE)


def robustness(card: Card, section: Section) -> None:
    found, rows = card.content["robustness"], []
    card.figure(
        section, "robustness", figures.robustness(found), "Accuracy on corrupted images by kind and severity",
        f"Accuracy in percent of the linear classifier, fitted on images as they are, on {found['images']:,} test "
        "images, the same everywhere, by kind and severity of the corruption. The kinds and parameters of CIFAR-10-C "
        "(Hendrycks & Dietterich, ICLR 2019) that need the image alone, made with this project's own code and random "
        "numbers: compare with other cards, not with published tables.",
    )  # fmt: skip
    cells = {n: share_cell(found[n]["clean"], found[n]["clean_interval"]) for n in among(found)}
    clean = card.content["paired"]["clean"]
    rows.append(card.row("not corrupted", cells, {n: paired_gap(clean[n]) for n in card.others}))
    groups = dict.fromkeys(found["groups"].values())
    for label in ("corrupted", *groups):
        of = {n: found[n] if label == "corrupted" else found[n]["by_group"][label] for n in among(found)}
        cells = {n: share_cell(x["mean"], x["interval"]) for n, x in of.items()}
        rows.append(card.row(label, cells, {n: interval_gap(of[n]["difference"]) for n in card.others}))
    note = "Intervals are over images, each with the mean of its corruptions; differences are paired by image."
    section.table(card.header("top-1, %"), rows, card.columns, note)


def calibration(card: Card, section: Section) -> None:
    linear = card.content["linear"]
    errors = [f"{percent(linear[name]['ece'])} % for {NAMES[name]}" for name in among(linear)]
    section.paragraph(
        "How far the linear classifier's confidence is from its accuracy: expected calibration error (15 bins) "
        f"{', '.join(errors)}."
    )
    card.figure(
        section, "calibration", figures.reliability(linear), "Accuracy over confidence",
        "Above the diagonal the classifier is less sure than it could be, below it surer than it should be. Bars: how "
        "many test images have such a confidence.",
    )  # fmt: skip


def classes(card: Card, section: Section) -> None:
    linear, classes = card.content["linear"], card.content["classes"]
    card.figure(
        section, "confusion", figures.confusion(linear, classes), "Confusion matrix",
        "Rows: the class of a test image; columns: what the linear classifier says, in percent of the row"
        + ("." if len(classes) <= MANY else "; colours show the square root."),
    )  # fmt: skip
    counts = card.content["test_counts"]
    order: Sequence[int] = range(len(classes))
    if len(classes) > MANY:
        known = [c for c in order if linear[RUN]["per_class"][c] is not None]
        ranked = sorted(known, key=lambda c: -linear[RUN]["per_class"][c])
        order = [*ranked[: MANY // 2], *ranked[-MANY // 2 :]]
        section.paragraph(
            f"The {MANY // 2} best and the {MANY // 2} worst of {len(classes)} classes; card.json has all."
        )
    rows = []
    for c in order:
        shares = {name: linear[name]["per_class"][c] for name in among(linear)}
        pairs = {n: linear[n]["per_class_paired"][c] for n in card.others}
        gaps = {n: paired_gap(pair) for n, pair in pairs.items() if pair}
        label = Cell(classes[c], f"{counts[c]:,} images")
        rows.append(card.row(label, {n: Cell(percent(x)) for n, x in shares.items()}, gaps))
    section.table(card.header("right, %"), rows, card.columns, PAIRED_NOTE)
