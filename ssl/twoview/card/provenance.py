"""What is needed to believe the numbers of a card and to find them again."""

from collections.abc import Mapping
from typing import Any

from twoview.card.figures import NAMES
from twoview.report.page import Cell, Section
from twoview.report.words import duration


def provenance(section: Section, facts: Mapping[str, Any]) -> None:
    section.code(facts["command"])
    rows: list[list[str | Cell]] = []
    for name, about in facts["encoders"].items():
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
    machine, versions = facts["machine"], facts["versions"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    told = {
        "data": f"{facts['data']}: {facts['train_size']:,} training and {facts['test_size']:,} test images of "
        f"{'x'.join(map(str, facts['image_shape']))}",
        "encoder": f"{facts['network']}, {facts['parameters']:,} parameters, {facts['dim']} features; "
        f"encoder_of={facts['encoder_of']}, eval mode, float32, un-augmented images",
        "settings": f"hash {facts['settings_hash']}"
        + (f", protocol {facts['linear']['run']['protocol_hash']}" if "linear" in facts else ""),
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; {gpus}; "
        f"{machine['system']}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": str(facts["commit"] or "not in a checkout"),
        "made": facts["made"],
    }
    section.table(["", ""], [[name, text] for name, text in told.items()], "ll")
    times = [[name.replace("_", " "), duration(s) if s >= 1 else f"{s:.1f} s"] for name, s in facts["seconds"].items()]
    times.append(["all of it, but the page", duration(facts["total_seconds"])])
    section.table(["part", "time"], times, "lr")
    if facts["missing"]:
        section.paragraph("Left out:")
        section.table(["part", "why"], [[n.replace("_", " "), why] for n, why in facts["missing"].items()], "ll")
