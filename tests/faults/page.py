"""The security page, cut into its statements."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/explanation/security.md"


@dataclass(frozen=True)
class Statement:
    """A list item, a table's row or a sentence of a paragraph.

    Attributes:
        heading: The heading that it stands under.
        text: Its words on one line, without the signs of Markdown.
    """

    heading: str
    text: str


def statements(text: str) -> list[Statement]:
    """Return the statements of the page, in order."""
    found: list[Statement] = []
    heading = ""
    for block in _blocks(text):
        if block.startswith("#"):
            heading = block.lstrip("# ")
        elif block.startswith("|"):
            found.append(Statement(heading, _plain(block.replace("|", " "))))
        elif block.startswith("- "):
            found.append(Statement(heading, _plain(block[2:])))
        else:
            sentences = re.split(r"(?<=[.:])\s+(?=[A-Z`*])", block)
            found += [Statement(heading, _plain(sentence)) for sentence in sentences]
    return found


def _blocks(text: str) -> list[str]:
    """Return paragraphs, list items, headings and rows, each on one line."""
    blocks: list[str] = []
    is_new = True
    for line in text.splitlines():
        starts = line.startswith(("#", "- ", "|"))
        if not line.strip():
            is_new = True
            continue
        if re.fullmatch(r"[|\s:-]+", line):
            # The line between a table's heading and its rows; the heading goes as well.
            blocks.pop()
            continue
        if is_new or starts:
            blocks.append(line.strip())
        else:
            blocks[-1] += " " + line.strip()
        is_new = line.startswith("#")
    return blocks


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[*`]|\[([^]]*)\]\([^)]*\)", r"\1", text).split())
