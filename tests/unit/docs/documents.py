"""Reading the documents: their code, the commands in it, their links and headings."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[3]
DOCUMENTS = sorted(
    [TREE / "README.md", *(TREE / "docs").rglob("*.md")], key=lambda path: path.relative_to(TREE)
)

_FENCE = re.compile(r"^ *```(?P<language>\w*)\s*$")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_END = re.compile(r"[|&;<]|&&|\|\||#|2?>.*")
_PASSED_OVER = {"sudo", "#", "$"}


@dataclass(frozen=True)
class Command:
    """A command that a document shows.

    Attributes:
        place: The document and the line, for a message.
        words: The program's name without its folder, and its arguments; brackets of a synopsis are
            taken away.
        synopsis: Whether it says what could be typed rather than what is.
    """

    place: str
    words: tuple[str, ...]
    synopsis: bool


def code_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of code with their numbers: what is indented, fenced, or a code span.

    A block that is fenced as ``text`` is what a program prints, and is passed over. A line that
    ends in a backslash is joined with the next.
    """
    joined, begun = "", 0
    for number, raw, _ in _lines(text):
        line = raw.strip()
        begun = begun if joined else number
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        yield begun, joined + line
        joined = ""


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield each fenced or indented block that isn't a program's output, with its first line."""
    lines: list[str] = []
    begun = 0
    for number, line, is_span in _lines(text):
        if is_span:
            continue
        if lines and number != begun + len(lines):
            yield begun, textwrap.dedent("\n".join(lines))
            lines = []
        begun = begun if lines else number
        lines.append(line)
    if lines:
        yield begun, textwrap.dedent("\n".join(lines))


def _lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield the lines of code, and the code spans, with their numbers and which they are."""
    language = None
    blank = True
    indented = False
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if fence:
            language = fence["language"] if language is None else None
            continue
        if language is not None:
            if language != "text":
                yield number, line, False
            continue
        indented = line.startswith("    ") and (blank or indented)
        blank = not line.strip()
        if indented:
            yield number, line, False
        else:
            for span in _SPAN.findall(line):
                yield number, span, True


def commands(path: Path) -> Iterator[Command]:
    """Yield every command of a document."""
    for number, line in code_lines(path.read_text("utf-8")):
        found = parse(line)
        if found:
            synopsis = " [" in line or "..." in line
            yield Command(f"{path.relative_to(TREE)}:{number}", found, synopsis)


def parse(line: str) -> tuple[str, ...]:
    """Return the words of the command on a line of code; none when it is something else."""
    try:
        words = shlex.split(re.sub(r"<<'?END'?.*", "", line))
    except ValueError:
        return ()
    while words and (words[0] in _PASSED_OVER or re.fullmatch(r"[A-Z_]+=.*", words[0])):
        words = words[1:]
    ends = [index for index, word in enumerate(words) if _END.fullmatch(word)]
    words = words[: ends[0]] if ends else words
    if not words:
        return ()
    return (words[0].rpartition("/")[2], *map(_without_brackets, words[1:]))


def _without_brackets(word: str) -> str:
    """Return a word of a synopsis without what only says that it is optional or repeated."""
    word = word.rstrip(".") if word.strip(".[]") else word
    if word.startswith("["):
        word = word[1:]
    return word[:-1] if word.count("]") > word.count("[") else word


def inner_command(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return what runs on a machine: the command itself, or what Juju carries there."""
    if words[:2] == ("juju", "ssh"):
        return parse(shlex.join(words[3:]))
    if words[:2] == ("juju", "exec") and "--" in words:
        return parse(shlex.join(words[words.index("--") + 1 :]))
    return words


def links(text: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the anchor of every link to a place in the tree; either may be empty."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as they are made on the usual sites."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
