"""What was found as a page: `explore.html`."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twoview.explore import clusters, outliers, plane
from twoview.explore.labels import Suggestions
from twoview.explore.make import Found, spread
from twoview.report.page import Page, Section, Thumbnail
from twoview.report.words import NBSP, percent, span
from twoview.rng import permutation

GROUPS, MEMBERS = 40, 12  # groups of near duplicates shown, and images of each
ODD = 24  # outliers shown
CLASSES, SURE, UNSURE = 30, 8, 16  # classes shown, the surest suggestions of each, and the least sure of all
SHEETS, TYPICAL = 40, 16  # clusters shown, and images of each
EXAMPLES, BESIDE = 8, 7  # images shown with their nearest, where nothing is asked; nearest images shown

FOOT = (
    "Similarity is the cosine of features, 1 for the same image. Likeness is the same on a scale on which two "
    "different images have 0 on average, and an image with itself 1. All rows with the names of their files: "
    "images.csv and neighbours.csv beside this page."
)


def compose(found: Found, about: Mapping[str, Any]) -> Page:
    """`about`: what the head says (`data`, `encoder`), and lines to type: the `command` that made the page, and those
    that `search` and that take `labels`.
    """
    n = len(found.gallery)
    page = Page(f"What is in {about['data']}", f"{n:,} images as {about['encoder']} sees them", FOOT)
    _head(found, page)
    if found.queries:
        _queries(found, page.section("Nearest images"))
    if found.suggestions is not None:
        _suggestions(found, found.suggestions, page.section("Suggested labels"))
    _duplicates(found, page.section("Near duplicates"))
    _outliers(found, page.section("Outliers"))
    _clusters(found, page.section("Clusters"))
    _map(found, page.section("Map"))
    if found.next:
        _next(found, page.section("Worth labelling next"), about)
    if not found.queries:
        _examples(found, page.section("Nearest images"), about)
    page.section("Made by").code(about["command"])
    return page


def _head(found: Found, page: Page) -> None:
    copies = sum(len(group.rows) for group in found.groups)
    odd = int((found.deviation > outliers.FAR).sum())
    page.numbers(
        [
            (f"{len(found.gallery):,}", "images"),
            (f"{copies:,}", f"are near duplicates, in {_counted(len(found.groups), 'group')}"),
            (f"{odd:,}", "far from all others"),
            (f"{len(found.clusters.typical):,}", "clusters" if found.clusters.clear else "parts, no clear clusters"),
        ]
    )


def _queries(found: Found, section: Section) -> None:
    section.paragraph("Each image that was asked for, and then those of the set with the most similar features.")
    shown = []
    for query in found.queries:
        beside = [_thumb(found, row, f"{s:.3f}") for row, s in zip(query.rows, query.similarity, strict=True)]
        shown.append((query.name, [Thumbnail(query.picture, Path(query.name).name, "asked for", "best"), *beside]))
    section.galleries(shown)


def _duplicates(found: Found, section: Section) -> None:
    if not found.groups:
        section.paragraph(f"No two images have a cosine of {found.limit:.3f} or more: there are no near duplicates.")
        return
    section.paragraph(
        f"Images with a cosine of at least {found.limit:.3f} to another (two different images: {found.strangers:.3f} "
        "on average). The surest groups come first. Look before you delete: pictures of one scene can be as near as "
        f"copies.{_rest(len(found.groups), GROUPS, 'groups')}"
    )
    section.galleries(
        [
            (
                f"{number}: cosine {group.similarity:.3f}"
                + (f", {MEMBERS} of {len(group.rows):,}" if len(group.rows) > MEMBERS else ""),
                [_thumb(found, row) for row in group.rows[:MEMBERS]],
            )
            for number, group in enumerate(found.groups[:GROUPS], start=1)
        ]
    )


def _outliers(found: Found, section: Section) -> None:
    order = found.deviation.argsort(descending=True).tolist()
    section.paragraph(
        f"The images farthest from the others, by the distance to the nearest but {found.near.rows.shape[1] - 1}; in "
        "small print how many robust deviations it lies above the median. Damaged and foreign files are here, and rare "
        f"things. Beyond {outliers.FAR} a distance is extraordinary.{_rest(len(order), ODD, 'images')}"
    )
    section.galleries([("", [_thumb(found, row, f"{float(found.deviation[row]):+.1f}") for row in order[:ODD]])])


def _clusters(found: Found, section: Section) -> None:
    parts = found.clusters
    score = f"silhouette {parts.silhouette:.2f}".replace("-", "−")
    if parts.method == "hdbscan":
        alone = int((parts.member < 0).sum())
        text = (
            f"Dense regions of the features ({score}); {alone:,} of {len(parts.member):,} images lie in none of them."
        )
    elif parts.clear:
        chosen = "the number with the highest silhouette" if parts.tried else "as many as were asked for"
        text = f"Images that belong together, by k-means: {chosen} ({score})."
    else:
        text = (
            f"These features have no clear clusters ({score}; below {clusters.STRUCTURE} there is no structure to "
            "speak of): what follows is cut by k-means out of what is continuous. clusters=... asks for another number."
        )
    section.paragraph(
        f"{text} The most typical images of each come first.{_rest(len(parts.typical), SHEETS, 'clusters')}"
    )
    found.gallery.prepare([row for rows in parts.typical[:SHEETS] for row in rows[:TYPICAL]])
    labels, shown = found.gallery.labels(), []
    for number, rows in enumerate(parts.typical[:SHEETS], start=1):
        title = f"{number}: {_counted(len(rows), 'image')}"
        known = Counter(labels[row] for row in rows if labels[row])
        if known:
            name, count = known.most_common(1)[0]
            title += f", {percent(count / sum(known.values()), 0)}{NBSP}% {name}"
        shown.append((title, [_thumb(found, row) for row in rows[:TYPICAL]]))
    section.galleries(shown)


def _map(found: Found, section: Section) -> None:
    meaning = (
        "the two directions in which features vary most"
        if found.map != "UMAP"
        else "neighbours stay together; distances between groups mean little"
    )
    section.paragraph(
        f"All images by {found.map}: {meaning}. An image stands where there is room for it; dots are others. "
        "images.csv has the places (x, y)."
    )
    order = permutation(len(found.gallery), 0, 0, "map").tolist()
    section.picture(plane.picture(found.places, found.gallery, order), "The images on a map of their features")


def _suggestions(found: Found, by: Suggestions, section: Section) -> None:
    files = int((by.given >= 0).sum())
    open_rows = (by.given < 0).nonzero().flatten().tolist()
    text = f"From {files:,} labelled files of {len(by.classes)} classes, by logistic regression on the features. "
    if by.right is None:
        text += "No class has two files, so none could be held out, and nobody knows how good the suggestions are."
    else:
        text += (
            f"Of labelled files that were held out, {percent(by.right.mean, 0)}{NBSP}% "
            f"{span(by.right.limits, _whole)} were named right. In small print the probability of the class."
        )
    section.paragraph(f"{text} images.csv has all ({_counted(len(open_rows), 'file')} without a label).")
    surest = sorted(open_rows, key=lambda row: -float(by.certainty[row]))

    def sure(row: int) -> Thumbnail:
        return _thumb(found, row, f"{percent(float(by.certainty[row]), 0)}{NBSP}%")

    shown = []
    for number, name in enumerate(by.classes[:CLASSES]):
        rows = [row for row in surest if by.label[row] == number]
        shown.append((f"{name}: {_counted(len(rows), 'file')}, the surest", [sure(row) for row in rows[:SURE]]))
    section.galleries(shown)
    least = [
        _thumb(found, row, f"{by.classes[by.label[row]]}? {percent(float(by.certainty[row]), 0)}{NBSP}%")
        for row in surest[::-1][:UNSURE]
    ]
    section.galleries([("The least sure of all", least)])


def _next(found: Found, section: Section, about: Mapping[str, Any]) -> None:
    section.paragraph(
        "A label for each of these tells most about the others: they are typical of what has no label yet. Fill in the "
        "column label in to_label.csv, and give it back:"
    )
    section.code(about["labels"])
    section.galleries([("", [_thumb(found, row) for row in found.next])])


def _whole(share: float) -> str:
    return percent(share, 0)


def _examples(found: Found, section: Section, about: Mapping[str, Any]) -> None:
    section.paragraph(
        "Some images of the set, each followed by those with the most similar features: what is alike to the encoder. "
        "For other images, in the set or not:"
    )
    section.code(about["search"])
    shown = []
    for row in spread(len(found.gallery), EXAMPLES):
        similar = zip(found.near.rows[row].tolist(), found.near.similarity[row].tolist(), strict=True)
        beside = [_thumb(found, other, f"{s:.3f}") for other, s in list(similar)[:BESIDE]]
        shown.append(("", [_thumb(found, row, mark="best"), *beside]))
    section.galleries(shown)


def _thumb(found: Found, row: int, note: str = "", mark: str = "") -> Thumbnail:
    return Thumbnail(found.gallery.picture(row), found.gallery.names[row], note, mark)


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _rest(n: int, shown: int, what: str) -> str:
    return f" Shown are {shown} of {n:,} {what}; images.csv has all." if n > shown else ""
