"""What a person sees while a run works: stages, a progress bar with rate and time left, the metrics table.

On a terminal a live bar; in a log file or CI the same as plain lines, one every few seconds.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

PLAIN_LINE_EVERY_S = 10.0
PLAIN_WIDTH = 140
COLUMNS: dict[str, str] = {
    "iteration": "iteration",
    "dev r(Y1)": "evaluation/dev/r_y1",
    "dev r(Y2)": "evaluation/dev/r_y2",
    "test r(Y1)": "evaluation/test/r_y1",
    "test r(Y2)": "evaluation/test/r_y2",
    "delta": "evaluation/test/delta",
    "i->c": "evaluation/test/i_to_c",
    "c->i": "evaluation/test/c_to_i",
    "cut": "rollouts/truncated_share",
    "kept": "examples/kept",
    "loss": "finetune/loss_last",
    "LATEST": "publish/latest",
}


class Display:
    """Writes to the terminal, or plain lines where there is none."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(highlight=False)
        if not console.is_terminal:  # a log file has no width: do not fold tables at 80
            console = Console(highlight=False, width=PLAIN_WIDTH)
        self.console = console
        self._shown: Sequence[Mapping[str, Any]] = ()

    def note(self, text: str) -> None:
        """One line for the reader."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, what: str, total: int, done: int = 0, unit: str = "") -> "Iterator[Bar]":
        """A bar for one stage, `done` of `total` at its start."""
        bar = Bar(self, what, total, done, unit)
        bar.start()
        try:
            yield bar
        finally:
            bar.stop()

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The metrics table: one row per iteration; nothing where it would be the same again, as when a run
        is resumed.
        """
        if rows == self._shown:
            return
        self._shown = rows
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(_cell(row.get(key)) for key in COLUMNS.values()))
        self.console.print(table)


class Bar:
    """Progress of one stage."""

    def __init__(self, display: Display, what: str, total: int, done: int, unit: str) -> None:
        self._display, self._what, self._total, self._done, self._unit = display, what, total, done, unit
        # Start timing at the first piece, so start-up does not count: when it came, and what was done then.
        self._first: tuple[float, int] | None = None
        self._printed = time.monotonic()
        self._live: Progress | None = None
        if display.console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            rate = (
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._live = Progress(*columns, *rate, console=display.console, transient=True)
            self._task = self._live.add_task(what, total=total, completed=done, rate="")

    def start(self) -> None:
        """Show it."""
        if self._live:
            self._live.start()
        else:
            self._display.note(f"  {self._what} ...")

    def stop(self) -> None:
        """Take it away."""
        if self._live:
            self._live.stop()

    def expect(self, total: int) -> None:
        """Set the total, if it was not known at the start."""
        self._total = total
        if self._live:
            self._live.update(self._task, total=total)

    def advance(self, amount: int, detail: str = "") -> None:
        """Count `amount` more; `detail` (a rate, a loss) stands beside the bar."""
        self._done += amount
        now = time.monotonic()
        self._first = self._first or (now, self._done)
        if self._live:
            self._live.update(self._task, completed=self._done, rate=detail)
        elif now - self._printed > PLAIN_LINE_EVERY_S:
            self._printed = now
            began, done = self._first
            left = (
                f", {(self._total - self._done) * (now - began) / (self._done - done):.0f} s left"
                if self._done > done
                else ""
            )
            self._display.note(f"  {self._what}: {self._done}/{self._total} {self._unit} {detail}{left}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "moved" if value else ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
