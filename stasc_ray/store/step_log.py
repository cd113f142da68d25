"""training.jsonl: one line per optimizer step, which grows while a fine-tune runs.

A line is {step (1-based), time (seconds since 1970), loss (nats per trained token), grad_norm (before
clipping), learning_rate, tokens_per_s (all tokens through the model, all workers), mfu (model-FLOPs
utilization; None where the peak of the device is not known)}. Rank 0 writes it in the fine-tune's storage;
the export puts it beside the model. Report and trackers read it meanwhile.
"""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stasc_ray.store.files import write_atomically
from stasc_ray.store.lease import Lease

NAME = "training.jsonl"
EVERY_S = 0.5
"""Least time between two writes: storage may be a network file system."""


def read(path: Path) -> list[dict[str, Any]]:
    """The lines by step, without a last one that is not whole yet; none if there is no file."""
    found: dict[int, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # cut where a process died, or is writing
            continue
        found[line["step"]] = line
    return [found[step] for step in sorted(found)]


def read_of_run(run: Path) -> dict[int, list[dict[str, Any]]]:
    """The lines of each iteration of a run folder that has been fine-tuned, or is being."""
    found = {
        int(path.name.rpartition("_")[2]): read(path / "model" / NAME) or read(path / "training" / NAME)
        for path in run.glob("iteration_*")
    }
    return {iteration: found[iteration] for iteration in sorted(found) if found[iteration]}


class StepLog:
    """Appends to the file at most every EVERY_S seconds."""

    def __init__(self, path: Path, lease: Lease | None, done: int) -> None:
        """Go on after step `done`: lines of later steps, which a checkpoint has not seen, are dropped."""
        self.path, self._lease = path, lease
        self._waiting: list[str] = []
        self._written = 0.0
        kept = [line for line in read(path) if line["step"] <= done]
        if self._holds_lease():
            write_atomically(path, _text(kept))

    def add(self, lines: Iterable[Mapping[str, Any]], *, last: bool = False) -> None:
        """Write the lines, or let them wait for the next call; with `last` none waits."""
        self._waiting += [_text([line]) for line in lines]
        if not last and time.monotonic() - self._written < EVERY_S:
            return
        if self._holds_lease():
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        self._waiting, self._written = [], time.monotonic()

    def _holds_lease(self) -> bool:
        return self._lease is None or not self._lease.lost


def _text(lines: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)
