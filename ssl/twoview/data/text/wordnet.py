"""WordNet's synonyms, read from its database files."""

from pathlib import Path

from twoview.errors import UserError

PARTS = ("noun", "verb", "adj", "adv")


def synonyms(folder: str | Path) -> dict[str, set[str]]:
    """The words that share a meaning with a word, for every single word in the files data.noun, data.verb, data.adj and
    data.adv of a folder (format: wndb(5WN); Miller, "WordNet: a lexical database for English", CACM 1995).
    """
    folder = Path(folder).expanduser()
    files = [folder / f"data.{part}" for part in PARTS]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{folder} lacks WordNet's {', '.join(missing)}: set wordnet to the folder of its database files (Debian: "
            "apt install wordnet-base, then /usr/share/wordnet; or from wordnet.princeton.edu)"
        )
    found: dict[str, set[str]] = {}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if line.startswith("  ") or not line:  # its licence
                continue
            fields = line.split()
            try:
                count = int(fields[3], 16)
                words = {fields[4 + 2 * i].partition("(")[0].lower() for i in range(count)}
            except (IndexError, ValueError):
                raise UserError(f"{file}, line {number}, is no line of WordNet's database") from None
            words = {word for word in words if "_" not in word}
            for word in words:
                found.setdefault(word, set()).update(words - {word})
    return found
