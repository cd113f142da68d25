"""The process that brings a run's metrics to one tracker; `tracking` starts it with NAME RUN END_S.

It sends the lines of metrics.jsonl, whose step is the iteration, and those of each fine-tune's training.jsonl
as `training/...`, whose step counts the optimizer steps of the whole run. It reads words on stdin: `line`
(metrics.jsonl has grown), at last `finished` or `failed`; without a last word the run was killed. What is
sent is remembered in RUN/tracking/NAME.json, after the tracker has confirmed it: a process that dies in
between leaves lines that are sent again, to the same place, never lines that are not sent.
"""

import importlib
import itertools
import json
import os
import queue
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stasc_ray import config
from stasc_ray.store import step_log
from stasc_ray.store.files import read_json, write_atomically
from stasc_ray.store.lease import newest_lease
from stasc_ray.store.run_folder import RunFolder, read_values

LOOK_S = 5.0
"""Between two looks for new steps of a fine-tune."""
RETRY_S = 30.0
"""Between two tries to reach a tracker that is down."""
END_S = 15.0
"""For what is left when the run ends; the process then ends itself, whatever its library waits for."""
REQUEST_S = 10
"""For one request to a tracker, so that one that never answers is noticed."""

Outcome = Literal["finished", "failed", "killed"]
OUTCOMES: dict[str, Outcome] = {"finished": "finished", "failed": "failed"}
AT_ONCE = 100
"""Points in one request: MLflow takes 1,000 metrics, and 100 parameters."""


@dataclass(frozen=True)
class Point:
    """The numbers of a line, where it stands on its axis, and when it was written (seconds since 1970)."""

    values: Mapping[str, float]
    step: int
    time: float


@dataclass
class Cursor:
    """How many points of each axis a tracker has, and which of its runs holds them."""

    file: Path
    sent: dict[str, int] = field(default_factory=dict)
    run_id: str | None = None

    @classmethod
    def read(cls, file: Path) -> "Cursor":
        """From `file`, or a new one."""
        return cls(file, **read_json(file, "sent", "run_id")) if file.is_file() else cls(file)

    def write(self) -> None:
        """Keep it."""
        write_atomically(self.file, json.dumps({"sent": self.sent, "run_id": self.run_id}))


@dataclass(frozen=True)
class Session:
    """An opened tracker.

    Args:
        send: an axis (`iteration`, or `training/step`) and points of it, AT_ONCE at most; raises if they did
            not arrive.
        close: say how the run ended.
        sends_late: whether `send` only takes points in, and `close` proves that they arrived.
    """

    send: Callable[[str, Sequence[Point]], None]
    close: Callable[[Outcome], None]
    sends_late: bool = False


def tensorboard(folder: Path, values: Mapping[str, Any], cursor: Cursor) -> Session:
    """Event files in <run>/tensorboard."""
    # Its own writer, not torch's: the process stays small.
    Event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
    Summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
    library = importlib.import_module("tensorboard.summary.writer.event_file_writer")
    writer = library.EventFileWriter(str(folder / "tensorboard"))

    def send(axis: str, points: Sequence[Point]) -> None:
        for point in points:
            found = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            writer.add_event(Event(wall_time=point.time, step=point.step, summary=Summary(value=found)))
        writer.flush()

    return Session(send, lambda _: writer.close())


def mlflow(folder: Path, values: Mapping[str, Any], cursor: Cursor) -> Session:
    """A run of the experiment `stasc`; a resumed run goes on in the same one."""
    # Tries are repeated here; MLflow's own (7 of 120 s each) would keep quiet for many minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    library = importlib.import_module("mlflow")
    metric, param = library.entities.Metric, library.entities.Param
    client = library.MlflowClient()
    if cursor.run_id is None:
        experiment = client.get_experiment_by_name("stasc")
        experiment_id = experiment.experiment_id if experiment else client.create_experiment("stasc")
        cursor.run_id = client.create_run(experiment_id, run_name=values["name"]).info.run_id
        cursor.write()
    else:
        client.update_run(cursor.run_id, status="RUNNING")

    def send(axis: str, points: Sequence[Point]) -> None:
        if not cursor.sent:  # not before: until there is a line, a resumed run may have another config
            params = [param(name, text[:500]) for name, text in flat(values)]
            for start in range(0, len(params), AT_ONCE):
                client.log_batch(cursor.run_id, params=params[start : start + AT_ONCE])
        found = [
            metric(name, value, int(point.time * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for start in range(0, len(found), 1000):
            client.log_batch(cursor.run_id, metrics=found[start : start + 1000])

    status = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
    return Session(send, lambda outcome: client.set_terminated(cursor.run_id, status[outcome]))


def wandb(folder: Path, values: Mapping[str, Any], cursor: Cursor) -> Session:
    """A run of the project `stasc`; a resumed run goes on in the same one."""
    library = importlib.import_module("wandb")
    if cursor.run_id is None:
        cursor.run_id = uuid.uuid4().hex[:12]
        cursor.write()
    run = library.init(
        project="stasc",
        name=values["name"],
        id=cursor.run_id,
        resume="allow",
        dir=str(folder),
        config=dict(values),
        allow_val_change=True,  # what may differ on resume
        settings=library.Settings(init_timeout=3 * REQUEST_S),
    )

    run.define_metric("*", step_metric="iteration")
    run.define_metric("training/*", step_metric="training/step")

    def send(axis: str, points: Sequence[Point]) -> None:
        for point in points:
            run.log({**point.values, axis: point.step})

    # W&B takes lines in and sends them from a process of its own; when `finish` returns it has sent them.
    return Session(send, lambda outcome: run.finish(int(outcome != "finished")), sends_late=True)


TRACKERS = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}


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


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and text of every value of a config."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", config.as_text(value)


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
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # who stops a job signals all its processes: the run says when
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
