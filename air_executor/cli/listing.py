"""Lists that stay readable: aligned on a terminal of any width, whole lines with tabs in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}

#: Between two columns.
_GAP = 2

#: The wrapping column gets at least so much room beside the others; otherwise it stands below them.
_LEAST = 24

#: In front of what stands below its row.
_INDENT = 4

#: In a pipe a line is as long as it has to be.
_NO_WIDTH = 1_000_000


class Listing:
    """A table that breaks no word, however narrow the terminal is.

    Its last columns give way: if there is no room for what wraps, it stands below its row; if there is no room for the
    others either, a row takes several lines and is broken between its cells.
    """

    def __init__(self, *columns: str, right: tuple[str, ...] = (), wraps: str = "") -> None:
        """Make an empty one.

        :param right: columns of numbers.
        :param wraps: the last column, if its text may be broken between words.
        """
        self._columns = columns
        self._right = frozenset(right)
        self._wraps = bool(wraps) and columns[-1] == wraps
        self._rows: list[list[Text]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Add a row. Texts are taken as they are."""
        self._rows.append([Text(flat(cell)) if isinstance(cell, str) else cell for cell in cells])

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def lines(self) -> Iterator[str]:
        """Yield the table for programs: a line for each row, a tab between cells."""
        yield "\t".join(self._columns)
        for row in self._rows:
            yield "\t".join(flat(cell.plain) for cell in row)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads = [Text(name, style="bold") for name in self._columns]
        table = [heads, *self._rows]
        aligned = len(self._columns) - self._wraps
        widths = [max(cell_len(row[n].plain) for row in table) for n in range(aligned)]
        used = sum(widths) + _GAP * (aligned - 1)
        if used > options.max_width:
            for row in table:
                yield from _flow([cell for cell in row if cell.plain], options.max_width)
            return
        room = options.max_width - used - _GAP
        is_below = self._wraps and room < min(_LEAST, max(cell_len(row[-1].plain) for row in table))
        for row in table:
            line = self._aligned(row[:aligned], widths)
            last = row[-1] if self._wraps else Text()
            if is_below or not last.plain:
                line.rstrip()
                yield line
                if last.plain and row is not heads:
                    yield from _indented(console, last, options.max_width, _INDENT)
                continue
            first, *more = last.wrap(console, room) or [Text()]
            yield Text.assemble(line, " " * _GAP, first)
            for rest in more:
                yield Text.assemble(" " * (used + _GAP), rest)

    def _aligned(self, cells: list[Text], widths: list[int]) -> Text:
        line = Text(no_wrap=True)
        for number, (name, cell, width) in enumerate(zip(self._columns, cells, widths, strict=False)):
            pad = " " * (width - cell_len(cell.plain))
            line.append(" " * _GAP if number else "")
            line.append_text(Text.assemble(pad, cell) if name in self._right else Text.assemble(cell, pad))
        return line


def flat(text: str) -> str:
    r"""Return text in one line that does nothing to a terminal: of control characters, each as ``\xXX``."""
    text = " ".join(text.split()) if any(c in text for c in "\t\n\r\x0b\x0c") else text
    return text.translate(_CONTROL)


def _flow(cells: Iterable[Text], width: int) -> Iterator[Text]:
    """Put cells one after the other, and begin a new line where the next one has no room."""
    line = Text()
    for cell in cells:
        if line.plain and cell_len(line.plain) + _GAP + cell_len(cell.plain) > width:
            yield line
            line = Text(" " * _GAP)
        elif line.plain:
            line.append(" " * _GAP)
        line.append_text(cell)
    yield line


def _indented(console: Console, text: Text, width: int, indent: int) -> Iterator[Text]:
    for line in text.wrap(console, max(1, width - indent)):
        yield Text.assemble(" " * indent, line)


def show(*parts: RenderableType) -> None:
    """Print for people on a terminal, and in a pipe for programs: whole lines, no colours."""
    console = Console()
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    for part in parts:
        sys.stdout.writelines(f"{line}\n" for line in _plain(part))
    sys.stdout.flush()


def say_where(text: str) -> None:
    """Print the line above a table; beside a pipe it goes to standard error, so that it is no row."""
    console = Console(stderr=not sys.stdout.isatty())
    console.print(Text(text, style="dim"), soft_wrap=True)


def _plain(part: RenderableType) -> Iterator[str]:
    if isinstance(part, Listing):
        yield from part.lines()
    elif isinstance(part, Group):
        for each in part.renderables:
            yield from _plain(each)
    elif isinstance(part, Text):
        yield part.plain
    else:
        console = Console(width=_NO_WIDTH, color_system=None, force_terminal=False)
        with console.capture() as captured:
            console.print(part)
        yield from (line.rstrip() for line in captured.get().splitlines())
