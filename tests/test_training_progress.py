"""What is shown while a trainer works, from the file that it writes."""

import io
import threading
from pathlib import Path

from rich.console import Console

from stasc_ray import stages
from stasc_ray.runtime.display import Bar, Display


def test_the_newest_whole_line_counts(tmp_path: Path) -> None:
    progress, lines = tmp_path / "progress.json", tmp_path / "training.jsonl"
    assert stages._last_step(progress) is None
    progress.write_text('{"step": 3, "steps": 9, "loss": 0.5}')
    assert stages._last_step(progress) == {"step": 3, "steps": 9, "loss": 0.5}
    lines.write_text('{"step": 4, "steps": 9, "loss": 0.4}\n{"step": 5, "st')
    assert stages._last_step(progress) == {"step": 4, "steps": 9, "loss": 0.4}
    lines.write_text('{"step": 4, "st')
    assert stages._last_step(progress) is None


def test_a_trainers_start_and_its_steps_are_shown(tmp_path: Path) -> None:
    stream, now, stop = io.StringIO(), [0.0], threading.Event()
    screen = Display()
    screen.console = Console(file=stream, width=140)
    file = tmp_path / "progress.json"

    def clock() -> float:  # half a minute passes with every look; the third step takes for ever
        now[0] += 30.0
        step = min(int(now[0] / 100), 3)
        if step:
            file.write_text(f'{{"step": {step}, "steps": 9, "loss": 0.5}}')
        if now[0] > 900:
            stop.set()
        return now[0]

    stages._follow(file, Bar(screen, "fine-tuning", 0, 0, "steps", 100.0, clock), stop, every_s=0.001)
    lines = [line.strip() for line in stream.getvalue().splitlines()]
    assert lines[0].startswith("fine-tuning: starting the trainer, ")
    left = [line for line in lines if "3/9 steps, loss 0.5" in line and "for the run)" in line]
    assert left and "nothing new for" in lines[-1]
