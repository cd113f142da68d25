"""MLflow, Weights & Biases and TensorBoard in one shape: a session takes points, and is told how a run ended.

Runs in a tracker's own process (tracker_process.py). `Cursor` is what one remembers between attempts.
"""

import importlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stasc_ray import config
from stasc_ray.store.files import read_json, write_atomically

REQUEST_S = 10
"""For one request to a tracker, so that one that never answers is noticed."""
AT_ONCE = 100
"""Points in one request: MLflow takes 1,000 metrics, and 100 parameters."""

Outcome = Literal["finished", "failed", "killed"]


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


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and text of every value of a config."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", config.as_text(value)
