"""The process that brings a run's metrics to one tracker; `tracking` starts it with NAME RUN END_S.

It sends the lines of metrics.jsonl, whose step is the iteration, and those of each fine-tune's training.jsonl
as `training/...`, whose step counts the optimizer steps of the whole run. It reads words on stdin: `line`
(metrics.jsonl has grown), at last `finished` or `failed`; without a last word the run was killed. What is
sent is remembered in RUN/tracking/NAME.json, after the tracker has confirmed it: a process that dies in
between leaves lines that are sent again, to the same place, never lines that are not sent.
"""

import itertools
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stasc_ray.store import step_log
from stasc_ray.store.lease import newest_lease
from stasc_ray.store.run_folder import RunFolder, read_values
from stasc_ray.store.trackers import AT_ONCE, TRACKERS, Cursor, Outcome, Point, Session

LOOK_S = 5.0
"""Between two looks for new steps of a fine-tune."""
RETRY_S = 30.0
"""Between two tries to reach a tracker that is down."""
END_S = 15.0
"""For what is left when the run ends; the process then ends itself, whatever its library waits for."""

OUTCOMES: dict[str, Outcome] = {"finished": "finished", "failed": "failed"}


class Delivery:
    """Brings what a run's files hold to one tracker, again and again until it is there."""

    def __init__(self, name: str, folder: Path, say: Callable[[str], None]) -> None:
        self.name, self.run, self.say = name, RunFolder(folder), say
        self.cursor = Cursor.read(folder / "tracking" / f"{name}.json")
        self._lease = newest_lease(folder / "lease")
        self._session: Session | None = None
        self._taken = dict(self.cursor.sent)
        self._down = False

    def attempt(self, outcome: Outcome | None = None) -> bool:
        """Send what waits, and close if the run ended; returns whether that worked.

        A tracker that fails is named once, not at each try.
        """
        self._check()
        try:
            self._send(outcome)
        except Exception as error:  # each library raises classes of its own, and none may end a run
            self._session, self._taken = None, dict(self.cursor.sent)
            if not self._down:
                self.say(
                    f"tracking.{self.name} is down ({type(error).__name__}: {_first_line(error)}); the run "
                    "goes on, its lines wait and are sent later"
                )
            self._down = True
            return False
        if self._down:
            self.say(f"tracking.{self.name} answers again; all that waited is sent")
        self._down = False
        return True

    def _send(self, outcome: Outcome | None) -> None:
        session = self._session or TRACKERS[self.name](self.run.path, read_values(self.run.path), self.cursor)
        self._session = session
        for axis, points in points_of(self.run):
            while waiting := points[self._taken.get(axis, 0) :][:AT_ONCE]:
                session.send(axis, waiting)
                self._taken[axis] = self._taken.get(axis, 0) + len(waiting)
                if not session.sends_late:
                    self._confirm()
        if outcome:
            session.close(outcome)
            self._confirm()

    def _check(self) -> None:
        """End where another attempt has taken the run over: its own process goes on from the cursor."""
        if self._lease.lost:
            raise SystemExit(1)

    def _confirm(self) -> None:
        self._check()
        if self.cursor.sent != self._taken:
            self.cursor.sent = dict(self._taken)
            self.cursor.write()


def points_of(run: RunFolder) -> list[tuple[str, list[Point]]]:
    """What a run's files hold so far, by axis. Either list only grows, but for steps that a fine-tune which
    goes on from a checkpoint takes again: with the same figures.
    """
    iterations = [
        Point({name: value for name, value in _numbers(line) if "/" in name}, line["iteration"], line["time"])
        for line in run.metrics_lines()
    ]
    steps = itertools.chain.from_iterable(step_log.read_of_run(run.path).values())
    trained = [
        Point(
            {f"training/{name}": value for name, value in _numbers(line) if name not in ("step", "time")},
            number,
            line.get("time", 0.0),  # earlier code wrote none
        )
        for number, line in enumerate(steps, start=1)
    ]
    return [("iteration", iterations), ("training/step", trained)]


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((name, float(value)) for name, value in line.items() if isinstance(value, (int, float)))


def deliver(delivery: Delivery, words: "queue.Queue[Outcome | None]") -> bool:
    """Send at each word, and in between what a fine-tune has done, until the run's outcome comes; returns
    whether everything was sent.
    """
    outcome = None
    while outcome is None:
        done = delivery.attempt()
        with suppress(queue.Empty):
            outcome = words.get(timeout=LOOK_S if done else RETRY_S)
    return delivery.attempt(outcome)


def _listen(words: "queue.Queue[Outcome | None]", end_s: float) -> None:
    last = "line"
    for text in sys.stdin:
        if (last := text.strip()) == "line":
            words.put(None)
    words.put(OUTCOMES.get(last, "killed"))
    end = threading.Timer(end_s, os._exit, (1,))
    end.daemon = True
    end.start()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def main() -> None:
    """Entry point: NAME of the tracker, RUN folder, seconds for what is left when the run ends."""
    name, folder, end_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    # Who stops a job signals all its processes; this one ends when the run has said how it ended.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # What the tracker's library prints goes to the log: stdout is for our own notes.
    notes = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(text: str) -> None:
        with suppress(OSError):  # the run was killed: nobody reads
            print(text, file=notes, flush=True)

    words: queue.Queue[Outcome | None] = queue.Queue()
    threading.Thread(target=_listen, args=(words, end_s), name="words", daemon=True).start()
    sys.exit(0 if deliver(Delivery(name, folder, say), words) else 1)


if __name__ == "__main__":
    main()
