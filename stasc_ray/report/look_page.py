"""What `stasc look` shows: plain data, and its two forms, lines for a terminal or a file and one HTML page.

Texts of models and of datasets are shown harmlessly: control characters and marks that turn the direction of
writing become visible signs, and nothing in them is markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from stasc_ray.report.figures import Table
from stasc_ray.report.page import CONTROL_PICTURES, templates
from stasc_ray.store import write_atomically

PLAIN_WIDTH = 120
"""Columns of a line where there is no terminal."""
SHOWN_BEFORE, SHOWN_AFTER = 40, 120
"""Of a long stretch that is not learnt, the tokens that the lines show at its two ends; the page has all."""
MARGIN = 10
"""Columns to the left of tokens: room for `LEARNT`."""
_UNSEEN = (*range(0x7F, 0xA0), 0x200B, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
_SIGNS = CONTROL_PICTURES | {code: f"<U+{code:04X}>" for code in _UNSEEN}


@dataclass(frozen=True)
class Token:
    """One token, or the few that make up one character."""

    ids: tuple[int, ...]
    text: str
    control: bool = False
    """It steers the conversation: no text of a question or a model can be it."""
    learnt: bool = False


@dataclass(frozen=True)
class Tokens:
    """A prompt or an example, token by token."""

    title: str
    tokens: Sequence[Token]


@dataclass(frozen=True)
class Said:
    """A text as it is, with what is to be said about it."""

    title: str
    text: str
    right: bool | None = None
    """None: it is not graded."""


@dataclass(frozen=True)
class Note:
    """A sentence; `warns`: about something that a person should change."""

    text: str
    warns: bool = False


Block = Note | Said | Table | Tokens


@dataclass(frozen=True)
class Part:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """All that one call of `stasc look` shows."""

    kicker: str
    title: str
    parts: Sequence[Part]


def harmless(text: str) -> str:
    """The text with visible signs for what a terminal would obey; a lone surrogate becomes a question
    mark.
    """
    return text.translate(_SIGNS).encode("utf-8", "replace").decode("utf-8")


def write_html(page: Page, destination: Path) -> Path:
    """Write the page; it needs no network and runs no scripts."""
    environment = templates(finalize=lambda value: harmless(value) if type(value) is str else value)
    environment.tests["block"] = lambda block, name: type(block).__name__ == name
    environment.globals["stretches"] = _stretches
    write_atomically(destination, environment.get_template("look.html.j2").render(page=page))
    return destination


def print_page(page: Page, console: Console | None = None) -> None:
    """Write the page as lines, which say all that colours say."""
    console = console or Console(highlight=False)
    if console.is_terminal:
        _print(page, console)
        return
    lines = StringIO()
    _print(page, Console(highlight=False, width=PLAIN_WIDTH, file=lines, color_system=None))
    for line in lines.getvalue().split("\n")[:-1]:  # without the spaces that fill a table's lines
        console.file.write(line.rstrip() + "\n")


def _print(page: Page, console: Console) -> None:
    console.print(Text(harmless(f"{page.title}: {page.kicker}"), "bold"))
    for part in page.parts:
        console.print(Text(harmless(f"\n== {part.title}"), "bold cyan"))
        for block in part.blocks:
            console.print(_LINES[type(block)](block, console.width))


def _note(note: Note, width: int) -> Any:
    return Text(harmless(f"! {note.text}" if note.warns else note.text), "yellow" if note.warns else "")


def _said(said: Said, width: int) -> Any:
    style = {True: "bold green", False: "bold red", None: "bold"}[said.right]
    return Group(Text(harmless(said.title), style), Padding(Text(harmless(said.text)), (0, 0, 0, 4)))


def _table(table: Table, width: int) -> Any:
    found = RichTable(box=None, pad_edge=False, header_style="dim", show_header=any(table.header))
    for name in table.header:
        found.add_column(Text(harmless(name)), overflow="fold")
    for row in table.rows:
        found.add_row(*(Text(harmless(cell)) for cell in row))
    return found


def _tokens(block: Tokens, width: int) -> Any:
    """Tokens with bars between them; each stretch that is learnt, or is not, begins a line that says so."""
    grid = RichTable.grid(padding=(0, 1, 0, 2))
    grid.add_column()
    grid.add_column(overflow="fold")
    some = any(token.learnt for token in block.tokens)
    for learnt, stretch in _stretches(block.tokens):
        if some and not learnt and len(stretch) > SHOWN_BEFORE + SHOWN_AFTER:
            left_out = Text(f"[{len(stretch) - SHOWN_BEFORE - SHOWN_AFTER} tokens not shown]", "dim")
            grid.add_row("", _bars(stretch[:SHOWN_BEFORE], width))
            grid.add_row("", left_out)
            stretch = stretch[-SHOWN_AFTER:]
        grid.add_row(Text("LEARNT" if learnt else "", "bold green"), _bars(stretch, width))
    return Group(Text(harmless(block.title), "bold"), grid)


def _bars(tokens: Sequence[Token], width: int) -> Text:
    """Lines break between tokens; spaces are seen as dots, line breaks as arrows."""
    line, room = Text(), width - MARGIN
    for token in tokens:
        shown = harmless(token.text).replace(" ", "\u00b7").replace("\n", "\u23ce\n")
        shown = f"\u27e6{shown}\u27e7" if token.control else shown
        last = line.plain.rpartition("\n")[2]
        if last and cell_len(last) + cell_len(shown) + 1 > room:
            line.append("\n")
        elif last:
            line.append("\u2502", "dim")
        line.append(shown, ("green " if token.learnt else "") + ("reverse" if token.control else ""))
    line.rstrip()
    return line


def _stretches(tokens: Sequence[Token]) -> list[tuple[bool, list[Token]]]:
    """(learnt, tokens) of each stretch."""
    return [(learnt, list(stretch)) for learnt, stretch in groupby(tokens, lambda token: token.learnt)]


_LINES: dict[Any, Any] = {Note: _note, Said: _said, Table: _table, Tokens: _tokens}
