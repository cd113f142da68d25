"""What is shown while a trainer works, from the file that it writes."""

import io
from pathlib import Path

from rich.console import Console

from stasc_ray import stages
from stasc_ray.runtime.display import Bar, Display


def test_a_trainers_start_and_its_steps_are_shown(tmp_path: Path) -> None:
    stream, now = io.StringIO(), [0.0]
    screen = Display()
    screen.console = Console(file=stream, width=140)
    file = tmp_path / "progress.json"
    bar = Bar(screen, "fine-tuning", 0, 0, "steps", 100.0, lambda: now[0])
    for look in range(30):  # half a minute passes with every look; the third step takes for ever
        now[0] = 30.0 * look
        if step := min(int(now[0] / 100), 3):
            file.write_text(f'{{"step": {step}, "steps": 9, "loss": 0.5}}')
        stages._show_step(file, bar)
    lines = [line.strip() for line in stream.getvalue().splitlines()]
    assert lines[0].startswith("fine-tuning: starting the trainer, ")
    left = [line for line in lines if "3/9 steps, loss 0.5" in line and "for the run)" in line]
    assert left and "nothing new for" in lines[-1]
