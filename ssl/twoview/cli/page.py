"""The page of --help: a command's groups with their options, and its keys with the comments of their files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from twoview.cli.configs import compose
from twoview.cli.program import in_its_words

WIDTH = 44  # columns of a key and its value before the comment


def help_page(
    command: str, words: Sequence[str], groups: Mapping[str, Sequence[str]], folders: Sequence[Path] = ()
) -> str:
    """What `<command> --help` prints, with the keys and values that the words give it."""
    config, hydra, files = compose(command, words, folders)
    template = in_its_words(hydra.help.template)
    comments: dict[str, str] = {}
    for path, section in files:
        comments |= _comments(path.read_text(), section, with_title=path.parent.name in groups)
    chosen = {group: option for group, option in hydra.runtime.choices.items() if group in groups}
    return Template(template).safe_substitute(
        APP_CONFIG_GROUPS="\n".join(f"  {group}: {', '.join(options)}" for group, options in groups.items()),
        CONFIG="\n".join(_lines(config, comments, chosen)),
    )


def _lines(node: DictConfig, comments: Mapping[str, str], chosen: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """A section in YAML, a key to a line, with comments; the names of classes are left to `--cfg job`."""
    indent = "  " * (path.count(".") + 1 if path else 0)
    content: Any = OmegaConf.to_container(node, resolve=False)
    for key, value in content.items():
        if str(key).startswith("_"):
            continue
        place = f"{path}.{key}" if path else str(key)
        comment = comments.get(place, "")
        if isinstance(value, dict) and value:
            option = f"{key}={chosen[key]}: " if not path and key in chosen else ""
            yield _commented(f"{indent}{key}:", option + comment)
            yield from _lines(node[key], comments, chosen, place)
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
            yield _commented(f"{indent}{key}: {text.removesuffix(chr(10)).removesuffix(f'{chr(10)}...')}", comment)


def _commented(text: str, comment: str) -> str:
    return f"{text:<{WIDTH - 2}}  # {comment}" if comment else text


def _comments(text: str, section: str, with_title: bool) -> dict[str, str]:
    """The comment behind each key of a file, by its place in the configuration; with the file's first line, which says
    what it is, as that of its section.
    """
    found: dict[str, str] = {}
    lines = text.splitlines()
    if with_title and section:
        found[section] = re.sub(r"^#\s*", "", lines[0])
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        for place, key, value in _keys(root, section):
            end = key.end_mark if isinstance(value, yaml.MappingNode) and not value.flow_style else value.end_mark
            behind = re.match(r":?\s*#\s?(.*)", lines[end.line][end.column :]) if end.line < len(lines) else None
            if behind:
                found[place] = " ".join([behind[1], *_continued(lines, end.line)])
    return found


def _keys(node: yaml.MappingNode, path: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    for key, value in node.value:
        if key.value in ("defaults", "hydra"):
            continue
        place = f"{path}.{key.value}" if path else str(key.value)
        yield place, key, value
        if isinstance(value, yaml.MappingNode):
            yield from _keys(value, place)


def _continued(lines: Sequence[str], number: int) -> Iterator[str]:
    """The comment lines below a commented line that go on with its comment: those that begin in its column."""
    column = lines[number].index("#")
    for line in lines[number + 1 :]:
        if not re.match(rf" {{{column}}}#", line):
            return
        yield line[column + 1 :].strip()
