"""What is needed to believe the numbers of a card and to find them again."""

from collections.abc import Mapping
from typing import Any

from twoview.card.figures import NAMES
from twoview.data.demand import shape_words
from twoview.report.page import Cell, Section
from twoview.report.words import duration


def provenance(section: Section, content: Mapping[str, Any]) -> None:
    section.code(content["command"])
    rows: list[list[str | Cell]] = []
    for name, about in content["encoders"].items():
        proof = about["frozen"]
        same = "unchanged" if proof["before"] == proof["after"] else "CHANGED"
        file = about.get("checkpoint") or f"drawn from seed {about.get('seed')}"
        sha = about.get("checkpoint_sha256")
        before = Cell(proof["before"][:16], f"{same} by the evaluation")
        rows.append([NAMES[name], Cell(file, f"sha256 {sha[:16]}" if sha else ""), before])
    section.table(
        ["encoder", "file", Cell("digest", "of all parameters and buffers")], rows, "lll",
        "Digests are taken before and after all parts. card.json has them whole.",
    )  # fmt: skip
    machine, versions = content["machine"], content["versions"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    entries = {
        "data": f"{content['data']}: {content['train_size']:,} training and {content['test_size']:,} test samples of "
        f"{shape_words(content['shape'])}",
        "encoder": f"{content['network']}, {content['parameters']:,} parameters, {content['dim']} features; "
        f"encoder_of={content['encoder_of']}, eval mode, float32, un-augmented samples",
        "settings": f"hash {content['settings_hash']}"
        + (f", protocol {content['linear']['run']['protocol_hash']}" if "linear" in content else ""),
        "machine": f"{machine['cpu']} ({machine['instructions']}), {machine['cores']} cores, "
        f"{machine['threads']} threads; {gpus}; {machine['system']}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": str(content["commit"] or "not in a checkout"),
        "made": content["made"],
    }
    section.table(["", ""], [[name, text] for name, text in entries.items()], "ll")
    times = [
        [name.replace("_", " "), duration(s) if s >= 1 else f"{s:.1f} s"] for name, s in content["seconds"].items()
    ]
    times.append(["all of it, but the page", duration(content["total_seconds"])])
    section.table(["part", "time"], times, "lr")
    if content["missing"]:
        section.paragraph("Left out:")
        section.table(["part", "why"], [[n.replace("_", " "), why] for n, why in content["missing"].items()], "ll")
