"""What a person sees while a run works: stages, a progress bar with rate and time left, the metrics table.

On a terminal a live bar; in a log file or CI the same as plain lines, one every ten seconds, later one a
minute.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
)
from rich.table import Table

from stasc_ray.runtime.pace import STALL_S, Pace, rest_of_tokens, words

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
        self.after_s: float | None = None
        """Seconds that the run still takes after the stage that is shown next; None: not known."""
        self._shown: Sequence[Mapping[str, Any]] = ()

    def note(self, text: str) -> None:
        """One line for the reader."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, what: str, total: int, done: int = 0, unit: str = "") -> "Iterator[Bar]":
        """A bar for one stage, `done` of `total` at its start; a total of 0 is not known yet."""
        bar = Bar(self, what, total, done, unit, self.after_s)
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


@contextmanager
def looking(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call `look` again and again, from a thread, while the block works."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(every_s):
            look()

    watcher = threading.Thread(target=repeat, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


class Bar:
    """Progress of one stage. A watcher calls `set` each second, whether something has changed or not.

    Args:
        done: of `total`, at the start.
        after_s: seconds that the run still takes after this stage; None: not known.
        clock: seconds; a test has its own.
    """

    def __init__(
        self,
        display: Display,
        what: str,
        total: int,
        done: int,
        unit: str,
        after_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._display, self._what, self._total, self._done, self._unit = display, what, total, done, unit
        self._before, self._after_s, self._clock = done, after_s, clock
        self._pace = Pace()
        self._began = self._printed = clock()
        self._live: Progress | None = None
        if display.console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            beside = (TextColumn("{task.fields[beside]}"), TimeElapsedColumn())
            self._live = Progress(*columns, *beside, console=display.console, transient=True)
            self._task = self._live.add_task(what, total=total or None, completed=done, beside="")

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

    def wait(self, what: str) -> None:
        """Show what is waited for."""
        self._show(f"{what}, {words(self._clock() - self._began)}")

    def set(
        self,
        done: int,
        *,
        total: int | None = None,
        detail: str = "",
        tokens: int | None = None,
        in_flight: int = 0,
    ) -> None:
        """Show how much is done by now.

        Args:
            detail: stands beside it, such as the loss.
            tokens: generated since the stage began, by which rate and time left are reckoned; None: by
                `done`.
            in_flight: questions that are worked on at once, at most; with `tokens`.
        """
        now, pace = self._clock(), self._pace
        self._total = self._total if total is None else total
        self._done = min(done, self._total)
        if pace.saw(now, self._done if tokens is None else tokens):
            rest: float | None = self._total - self._done
            if tokens is not None:
                fresh = self._done - self._before, self._total - self._before
                rest = rest_of_tokens(tokens, *fresh, in_flight)
            if rest is not None:
                pace.expect(now, rest)
        rate = f"{_figure(pace.rate)} tokens/s" if tokens is not None and pace.rate else ""
        still = f"nothing new for {words(pace.still_for(now))}" if pace.still_for(now) > STALL_S else ""
        self._show(", ".join(filter(None, (rate, detail, self._left(now) or "", still))))

    def _left(self, now: float) -> str | None:
        left = self._pace.left(now)
        if left is None or self._done >= self._total:
            return None
        run = "" if self._after_s is None else f" ({words(left + self._after_s)} for the run)"
        return f"{words(left)} left{run}"

    def _show(self, beside: str) -> None:
        now = self._clock()
        if self._live:
            self._live.update(self._task, completed=self._done, total=self._total or None, beside=beside)
        elif now - self._printed >= min(max(PLAIN_LINE_EVERY_S, (now - self._began) / 20), 60.0):
            # every 10 s at first, once a minute in a stage that takes hours
            self._printed = now
            count = f" {self._done}/{self._total} {self._unit}" if self._total else ""
            self._display.note(f"  {self._what}:{count}{', ' if count and beside else ' '}{beside}".rstrip())


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "moved" if value else ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
