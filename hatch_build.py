"""What a wheel says about itself: README.md, with links that hold outside of the repository."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class LongDescription(MetadataHookInterface):
    """Sets `readme`, by the address `Source` in pyproject.toml's `project.urls` if there is one."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = standing_alone(text, metadata.get("urls", {}).get("Source"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def standing_alone(text: str, source: str | None) -> str:
    """Relative links and pictures become absolute, or, without an address, plain text and nothing."""
    picture, link = r"!\[([^\]]*)\]\((?!https?://|#)([^)]+)\)", r"(?<!!)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)"
    if source is None:
        return re.sub(link, r"\1", re.sub(rf"{picture}\n*", "", text))
    return re.sub(link, rf"[\1]({source}/blob/main/\2)", re.sub(picture, rf"![\1]({source}/raw/main/\2)", text))
