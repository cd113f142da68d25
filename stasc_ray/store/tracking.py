"""Metrics to trackers (TensorBoard, MLflow, Weights & Biases), beside metrics.jsonl, which is always written.

Each tracker has a process of its own (`tracker_process`), which sends what metrics.jsonl holds beyond its
cursor. A tracker that is down or hangs, and whatever its library leaves for the end, so stays out of the run:
lines wait, and are sent when it answers, when the run ends, or when the run is continued.
"""

import contextlib
import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stasc_ray import config
from stasc_ray.store.tracker_process import END_S
from stasc_ray.store.trackers import TRACKERS

Track = Callable[[], None]
"""Say that metrics.jsonl has a new line; returns at once."""


def check(section: config.Tracking) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        ImportError: the message says how to install it.
    """
    for name in _wanted(section):
        found = importlib.util.find_spec(name)
        if not (found and found.origin):  # a mere folder of that name, as wandb makes one, has no origin
            raise ImportError(
                f"tracking.{name}: expected the package {name}; pip install 'stasc-ray[{name}]'"
            )


@contextmanager
def trackers(
    section: config.Tracking, folder: Path, note: Callable[[str], None], *, end_s: float = END_S
) -> Iterator[Track]:
    """Send the lines of `folder`'s metrics.jsonl to every tracker that `tracking` names, for the length of
    the block.

    Args:
        folder: an opened run's; its config.json says the run's name and parameters.
        note: shows a line to the reader: once when a tracker is down, once when it answers again.
        end_s: for what waits at the end of the block.

    Raises:
        ImportError: as `check`.
    """
    check(section)
    processes = {name: _start(name, folder, note, end_s) for name in _wanted(section)}

    def tell(word: str) -> None:
        for process, _ in processes.values():
            _tell(process, word)

    outcome = "failed"
    try:
        yield lambda: tell("line")
        outcome = "finished"
    finally:
        tell(outcome)
        for process, _ in processes.values():
            assert process.stdin
            with contextlib.suppress(OSError):
                process.stdin.close()
        # They end themselves after `end_s`, all at once; the rest is for a machine that is busy.
        deadline = time.monotonic() + end_s + 5
        for name, (process, reader) in processes.items():
            _wait(process, reader, deadline)
            if process.returncode:
                note(f"tracking.{name}: not everything was sent; the same command sends the rest later")


def _start(
    name: str, folder: Path, note: Callable[[str], None], end_s: float
) -> tuple[subprocess.Popen[str], threading.Thread]:
    command = [sys.executable, "-m", "stasc_ray.store.tracker_process", name, str(folder), str(end_s)]
    # A session of its own: Ctrl-C is for the run, which then tells the tracker how it ended.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    reader = threading.Thread(target=_show, args=(process.stdout, note), name=f"tracking-{name}", daemon=True)
    reader.start()
    return process, reader


def _tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin
    # A pipe holds tens of thousands of words, so one that nobody reads blocks nothing; a process that is gone
    # is seen at the end.
    with contextlib.suppress(OSError):
        process.stdin.write(f"{word}\n")
        process.stdin.flush()


def _wait(process: subprocess.Popen[str], reader: threading.Thread, deadline: float) -> None:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # What a tracker's library started may hold the pipe open: what the process said is read by then.
    reader.join(1)


def _show(lines: IO[str], note: Callable[[str], None]) -> None:
    for line in lines:
        note(line.rstrip("\n"))


def _wanted(section: config.Tracking) -> list[str]:
    return [name for name in TRACKERS if getattr(section, name)]
