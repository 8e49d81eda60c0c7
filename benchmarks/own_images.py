"""What `explore` finds in a folder in which copies and foreign images were hidden, after a short training on it.

    python benchmarks/own_images.py [epochs=30] [out=...] [picture=...]    # three minutes on 2 cores

Three thousand test images of CIFAR-10 become files. Forty of them get a copy: written again as JPEG, made brighter,
cropped by a pixel on each side, or mirrored; and three files are no photographs. SimCLR is trained on the folder
without labels (`experiment=cifar10_cpu`), and then: which copies are found, and what else is taken for one; where the
foreign files stand among the outliers; how right the suggestions of labels from a hundred files are, said and in truth;
and what fifty labels are worth that were chosen, beside fifty drawn. Last, the seconds to compare 100,000 x 512
features with each other. Writes benchmarks/results/own_images.json and a picture of what was found.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import own
import record
import torch
from PIL import Image, ImageEnhance, ImageOps
from rich.console import Console
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
KEYS = {
    "epochs": "30",
    "out": str(RESULTS / "own_images.json"),
    "picture": str(RESULTS / "own_images.png"),
}
FILES, COPIES, LABELLED, CHOSEN, DRAWS = 3000, 40, 100, 50, 5
ROWS, DIM = 100_000, 512
COPY = {
    "written again as JPEG": lambda image: image,
    "brighter by 15 %": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "cropped by a pixel": lambda image: ImageOps.crop(image, 1).resize((32, 32)),
    "mirrored": ImageOps.mirror,
}


def hide(folder: Path) -> tuple[dict[str, str], dict[str, tuple[str, str]], list[str]]:
    """Writes the files. The class of each of CIFAR-10; of each copy its original and its kind; the foreign ones."""
    images = own.schema.build(own.configuration(["data=cifar10"])["data"])(split="test")
    rng = np.random.default_rng(0)
    pixels = images.samples[:FILES].movedim(1, -1).numpy()  # (N, 32, 32, 3)
    for row, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{row:04}.png")
    labels = {f"{row:04}.png": images.classes[c] for row, c in enumerate(images.labels[:FILES].tolist())}
    copies = {}
    for n, row in enumerate(rng.choice(FILES, COPIES, replace=False).tolist()):
        kind = list(COPY)[n % len(COPY)]
        name = f"copy of {row:04}.{'jpg' if 'JPEG' in kind else 'png'}"
        COPY[kind](Image.fromarray(pixels[row])).save(folder / name)
        copies[name] = (f"{row:04}.png", kind)
    board = np.tile(np.uint8([[0, 255], [255, 0]]), (16, 16))
    foreign = {"noise.png": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), "board.png": board}
    foreign["red.png"] = np.full((32, 32, 3), (255, 0, 0), dtype=np.uint8)
    for name, image in foreign.items():
        Image.fromarray(image).convert("RGB").save(folder / name)
    return labels, copies, list(foreign)


def accuracy(features: Tensor, names: Sequence[str], labels: dict[str, str], rows: Sequence[int]) -> dict[str, Any]:
    """Of suggestions from these labelled rows: what they say of themselves, and what is true of all other rows."""
    from twoview.explore.labels import suggest

    found = suggest(features, {row: labels[names[row]] for row in rows})
    others = [row for row in range(len(names)) if names[row] in labels and found.given[row] < 0]
    right = [found.classes[found.label[row]] == labels[names[row]] for row in others]
    return {
        "labelled": len(rows),
        "classes": len(found.classes),
        "said": found.right and [found.right.mean, *found.right.limits],
        "right": float(np.mean(right)),
        "mean_certainty": float(found.certainty[others].mean()),
    }


def scale() -> dict[str, Any]:
    """Seconds to find the ten nearest of each of many random features, exactly."""
    from twoview.explore.neighbours import others

    features = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))
    others(features[:1000], 10)  # libraries, threads
    before, start = record.memory_before(False), time.perf_counter()
    others(features, 10)
    seconds = time.perf_counter() - start
    return {"rows": ROWS, "dim": DIM, "seconds": seconds, "extra_bytes": record.memory_at_most(False) - before}


def draw(found: Any, path: Path) -> None:
    """Near duplicates, outliers and nearest images: eight in a row."""
    from twoview.explore.make import spread
    from twoview.report.sheet import DPI, Band, Picture, sheet
    from twoview.report.theme import write_plot

    def picture(row: int, more: str = "") -> Picture:
        pixels = found.gallery.pixels([row])[0]
        return Picture(pixels, [found.gallery.names[row].removesuffix(".png"), *([more] if more else [])])

    def band(title: str, rows: list[list[Picture]]) -> Band:
        return Band([(title, [""] * 8)], rows)

    groups = [found.groups[n] for n in spread(len(found.groups), 8)]
    pairs = [picture(row, f"cosine {group.similarity:.3f}") for group in groups for row in group.rows[:2]]
    odd = found.deviation.argsort(descending=True)[:8].tolist()
    nearest = []
    for row in (600, 2900):
        similar = zip(found.near.rows[row, :7].tolist(), found.near.similarity[row, :7].tolist(), strict=True)
        nearest.append([picture(row, "asked for"), *(picture(other, f"{s:.3f}") for other, s in similar)])
    title = f"What is in a folder of {len(found.gallery):,} images"
    figure = sheet(
        title,
        "By the features of an encoder that was trained on the folder itself, without labels.",
        [
            band("Near duplicates, pair by pair", [pairs[i : i + 8] for i in range(0, len(pairs), 8)]),
            band(
                "Outliers, with robust deviations above the median",
                [[picture(row, f"{float(found.deviation[row]):+.1f}") for row in odd]],
            ),
            band("Nearest images of the first one", nearest),
        ],
    )
    write_plot(path, lambda theme: figure, DPI)


def main() -> None:
    chosen = dict(KEYS)
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key not in KEYS or not value:
            sys.exit(f"cannot read {word!r}: the keys are {', '.join(KEYS)}\n\n{__doc__}")
        chosen[key] = value
    began, console = time.perf_counter(), Console()
    from twoview.data.image.folder import image_folder
    from twoview.evaluate.describe.components import principal
    from twoview.evaluate.features import extract
    from twoview.explore.gallery import Gallery
    from twoview.explore.labels import worth_labelling
    from twoview.explore.make import COMPONENTS, explore
    from twoview.run.checkpoint import load_encoder

    with tempfile.TemporaryDirectory() as place:
        photos, run = Path(place) / "photos", Path(place) / "run"
        photos.mkdir()
        labels, copies, foreign = hide(photos)
        words = ["experiment=cifar10_cpu", "data=image_folder", f"data.root={photos}", "data.size=32", "knn=null"]
        summary = own.pretrain.run(own.configuration([*words, f"epochs={chosen['epochs']}"]), run)
        samples = image_folder(photos, "train")
        assert samples is not None
        features, names = extract(load_encoder(run), samples), list(samples.names)
    settings = own.configuration(["ckpt=none", "next=0"], "explore")
    start = time.perf_counter()
    found = explore(Gallery({"train": samples}), features, {}, settings)
    exploring = time.perf_counter() - start
    group = {names[row]: n for n, one in enumerate(found.groups) for row in one.rows}
    kinds: dict[str, list[bool]] = {}
    for name, (original, kind) in copies.items():
        kinds.setdefault(kind, []).append(name in group and group[name] == group.get(original))
    planted = {group[name] for name in copies if name in group and group[name] == group.get(copies[name][0])}
    order = [names[row] for row in found.deviation.argsort(descending=True).tolist()]
    rng = np.random.default_rng(1)
    known = [row for row, name in enumerate(names) if name in labels]
    points, _ = principal(torch.nn.functional.normalize(features.double(), dim=1)[known], COMPONENTS)
    picked = [known[row] for row in worth_labelling(points, [], CHOSEN)]
    drawn = [accuracy(features, names, labels, rng.choice(known, CHOSEN, replace=False).tolist()) for _ in range(DRAWS)]
    result = {
        "training": {key: summary[key] for key in ("epochs", "samples", "training_seconds")},
        "explore_seconds": exploring,
        "likeness": settings["duplicates"],
        "copies": {kind: {"hidden": len(hits), "found": sum(hits)} for kind, hits in kinds.items()},
        "other_groups": [[names[row] for row in one.rows] for n, one in enumerate(found.groups) if n not in planted],
        "rank_of_foreign": {name: order.index(name) + 1 for name in foreign},
        "suggestions": accuracy(features, names, labels, rng.choice(known, LABELLED, replace=False).tolist()),
        "chosen": accuracy(features, names, labels, picked),
        "drawn": drawn,
        "search": scale(),
    }
    for key in ("copies", "other_groups", "rank_of_foreign", "suggestions", "chosen", "search"):
        console.print(f"{key}: {result[key]}", highlight=False)
    console.print(f"drawn: {[round(one['right'], 3) for one in drawn]}", highlight=False)
    record.write(Path(chosen["out"]), result, began, {"scikit-learn": record.version("scikit-learn")}, console)
    draw(found, Path(chosen["picture"]))


if __name__ == "__main__":
    main()
