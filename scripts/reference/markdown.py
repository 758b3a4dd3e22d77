"""Pages, tables and docstrings as Markdown."""

from __future__ import annotations

import re

#: The first line of each page that is made here.
MADE = "<!-- Made from the code by scripts/reference. Do not edit: change the code, and call it again. -->"


def page(title: str, *parts: str) -> str:
    """Return a page that is made here, of its title and its parts."""
    return "\n\n".join([MADE, f"# {title}", *(part.strip("\n") for part in parts)]) + "\n"


def cell(text: str) -> str:
    """Return a text as the cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table with a head."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell(each) for each in line) + " |" for line in lines)


def markdown(text: str) -> str:
    """Return reStructuredText, of the little that docstrings here use, as Markdown."""
    text = re.sub(r":[a-z]+:`~?([^`]+)`", lambda match: f"`{match[1].rpartition('.')[2]}`", text)
    return text.replace("``", "`")
