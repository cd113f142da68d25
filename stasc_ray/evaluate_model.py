"""`stasc evaluate`: any model's answers and corrections on any questions, by the same path that a run takes."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stasc_ray import config, passes, store
from stasc_ray.generation import rollouts, unit_files
from stasc_ray.runtime.display import Display
from stasc_ray.tasks import questions

DEFAULTS = {
    "canonical": {},
    "nq_open": {"prompts.preset": "qa", "reward.name": "in_accuracy"},
    "gsm8k": {"prompts.preset": "math", "reward.name": "math", "reward.scope": "after_marker"},
    "math500": {"prompts.preset": "math", "reward.name": "math", "reward.scope": "after_marker"},
    "commonsense_qa": {"prompts.preset": "choice", "reward.name": "choice", "reward.scope": "after_marker"},
    "sandbox": {"prompts.preset": "sandbox", "reward.name": "exact_match", "reward.scope": "after_marker"},
}
"""Prompts and reward that suit a dataset; overridden by what the user gives, unused with a config file."""


def defaults(preset: str, data: str) -> list[str]:
    """Overrides that suit a question preset. A failed row is a scored failure here, shown in the figures, and stops nothing."""
    suited = DEFAULTS["sandbox" if data == "sandbox" else preset]
    suited |= {"engine.max_model_len_tokens": "4096", "engine.max_error_fraction": "1.0"}
    return [f"{name}={value}" for name, value in suited.items()]


@contextlib.contextmanager
def folder_for(output: Path | None) -> Iterator[Path]:
    """The folder to keep rollouts in, or one that goes away with the block.

    Raises:
        ValueError: the folder holds something.
    """
    if output is None:
        with tempfile.TemporaryDirectory(prefix="stasc-evaluate-") as folder:
            yield Path(folder)
        return
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"--output {output}: expected a new or an empty folder, found files in it")
    output.mkdir(parents=True, exist_ok=True)
    yield output.resolve()


def evaluate(
    settings: config.Config, folder: Path, on_cuda: bool, rounds: int, display: Display
) -> list[dict[str, Any]]:
    """Answer, correct `rounds` times (each round corrects the one before) and measure; one dict of metrics per round.

    Raises:
        ValueError, RuntimeError: as the stages of a run.
    """
    passes.check_models(settings)
    loaded = questions.load_questions(settings.questions, settings.seed, splits=("test",))
    rows = passes.gradable(loaded.rows, settings)
    skipped = loaded.skipped_bad_rows + len(loaded.rows) - len(rows)
    display.note(
        f"questions: {len(rows)}; {loaded.dropped_duplicates} duplicates dropped, {skipped} bad rows skipped"
    )
    file = folder / "questions" / "test.parquet"
    unit_files.write_questions(rows, file, settings.engine.batch_size)
    held_out = passes.turns(settings)["test"]
    job = rollouts.Job(
        model=passes.base_model(settings),
        model_version="base",
        settings=settings,
        turns={
            "test": rollouts.Turns(
                held_out.n_initial, rounds, held_out.initial, held_out.correction, chained=True
            )
        },
        destination=str(folder / "rollouts"),
        on_cuda=on_cuda,
    )
    units = unit_files.question_units(file, "test")
    summary = passes.collect(display, job, units, "answers and corrections")
    passes.check_errors(summary, settings.engine.max_error_fraction, job.destination)
    files = [f"{job.destination}/{unit.name}.parquet" for unit in units]
    found = [{"round": number, **passes.measure(files, settings, number)} for number in range(1, rounds + 1)]
    store.write_atomically(
        folder / "metrics.json", json.dumps({"rollouts": summary, "rounds": found}, indent=2)
    )
    return found


def as_text(found: list[dict[str, Any]]) -> str:
    """The metrics as lines; r(Y1) is the initial answer's, r(Y2) the one after that round."""
    lines = [f"questions {found[0]['questions']}, failed {found[0]['errors']}"]
    names = ("r_y1", "r_y2", "delta", "i_to_c", "c_to_i", "cl", "cs", "rss", "changed")
    for row in found:
        values = "  ".join(
            f"{name} {'-' if row[name] is None else format(row[name], '.4f')}" for name in names
        )
        lines.append(
            f"round {row['round']}:  {values}  r_y2 95% [{row['r_y2_low']:.4f}, {row['r_y2_high']:.4f}]"
        )
    return "\n".join(lines)
