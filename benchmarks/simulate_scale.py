"""How generation scales, by simulation: the real rollouts pipeline, with engines that sleep as a GPU would.

python benchmarks/simulate_scale.py --engines 1 4 16 --units 24 --output /tmp/scale.json

Ray Data, reading, grading, writing and the commit of every unit are real; an engine only waits as long as a GPU would take for the
tokens (RATES) and answers with text of that length. Nodes are fake: Ray is told of more CPUs than there are. Prompts are not
rendered, so a tokenizer's CPU time is not in the figures. Prints a Markdown table; docs/scaling.md holds one.

Efficiency is the time the engines needed for their tokens over the time they were there: 1 if none ever waited for work.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.generation import engine, rollouts

RATES = {"1.5B on one A100": 9_600.0, "7B on one A100": 2_400.0}
"""Generated tokens per second of one full engine. Assumptions, not measurements."""
ANSWER_TOKENS = 100
QUESTIONS_PER_UNIT = 32
COLUMNS = ("engines", "questions", "answers", "efficiency", "questions_per_s", "wall_s", "driver_gb", "driver_cpu_ms_per_unit")


class SleepingActor(rollouts.RolloutActor):
    """An engine that produces tokens at a fixed rate, one queue for all that is in flight, as a saturated GPU does."""

    def __init__(self, job: rollouts.Job, tokens_per_s: float) -> None:
        import ray

        self.job, self.tokens_per_s = job, tokens_per_s
        self.engine_start_s, self.node = 0.0, ray.get_runtime_context().get_node_id()
        self.lock, self.free_at, self.begun, self.tokens = threading.Lock(), 0.0, 0.0, 0
        self.clock = Path(job.destination) / f"clock-{os.getpid()}.json"

    async def _sample(
        self, rollout: dict[str, Any], messages: list[dict[str, str]], sampling: config.Sampling, n: int, turn: str
    ) -> list[engine.Sample]:
        tokens = n * ANSWER_TOKENS
        with self.lock:
            now = time.time()
            self.begun = self.begun or now
            self.free_at = max(self.free_at, now) + tokens / self.tokens_per_s
            self.tokens += tokens
            ready = self.free_at
        await asyncio.sleep(max(ready - time.time(), 0))
        return [engine.Sample("word " * ANSWER_TOKENS, (0,) * ANSWER_TOKENS, "stop")] * n

    def __call__(self, batch: Any) -> Any:
        """One unit, and what this engine has done so far."""
        done = super().__call__(batch)
        with self.lock:
            self.clock.write_text(json.dumps({"begun": self.begun, "ended": time.time(), "tokens": self.tokens}))
        return done


def main() -> None:
    """Parse the command line, simulate each size, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--units", type=int, default=24, help=f"units of {QUESTIONS_PER_UNIT} questions per engine")
    parser.add_argument("--corrections", type=int, default=5, help="corrections per question")
    parser.add_argument("--gpu", choices=sorted(RATES), default="7B on one A100")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    import ray

    ray.init(address="local", num_cpus=2 * max(arguments.engines) + 4, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rate = RATES[arguments.gpu]
    found = [simulate(engines, engines * arguments.units, arguments.corrections, rate) for engines in arguments.engines]
    ray.shutdown()
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in found:
        print(
            "| " + " | ".join(f"{row[name]:.3g}" if isinstance(row[name], float) else f"{row[name]:,}" for name in COLUMNS) + " |"
        )
    if arguments.output:
        machine = {"cores": os.cpu_count(), "platform": platform.platform(), "gpu": arguments.gpu, "tokens_per_s": rate}
        arguments.output.write_text(json.dumps({"machine": machine, "rows": found}, indent=2) + "\n")


def simulate(engines: int, units: int, corrections: int, tokens_per_s: float) -> dict[str, Any]:
    """Run one size; returns COLUMNS."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        questions = Path(folder) / "train.parquet"
        rows = [question(number) for number in range(units * QUESTIONS_PER_UNIT)]
        rollouts.write_questions(rows, questions, QUESTIONS_PER_UNIT)
        destination = Path(folder) / "rollouts"
        destination.mkdir()
        plan = rollouts.question_units(questions, "train")
        job = make_job(destination, engines, corrections)
        started, cpu = time.time(), time.process_time()
        answered = sum(row["questions"] for row in rollouts.pipeline(job, plan, make_actor(tokens_per_s)).iter_rows())
        wall_s, cpu_s = time.time() - started, time.process_time() - cpu
        clocks = [json.loads(file.read_text()) for file in destination.glob("clock-*.json")]
    assert answered == len(rows), f"expected {len(rows)} questions, found {answered}"
    there_s = max(clock["ended"] for clock in clocks) - min(clock["begun"] for clock in clocks)
    busy_s = sum(clock["tokens"] for clock in clocks) / tokens_per_s
    return {
        "engines": engines,
        "questions": answered,
        "answers": answered * (1 + corrections),
        "efficiency": busy_s / (engines * there_s),
        "questions_per_s": answered / there_s,
        "wall_s": wall_s,
        "driver_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "driver_cpu_ms_per_unit": 1000 * cpu_s / units,
    }


def question(number: int) -> dict[str, Any]:
    """One made-up question of a usual length."""
    text = f"Question {number}: " + "which of the following is true of the thing in question? " * 5
    return {"id": f"{number:09d}", "question": text, "answers": ["yes"], "split": "train", "documents": [], "choices": []}


def make_job(destination: Path, engines: int, corrections: int) -> rollouts.Job:
    """A pass over train questions with that many sleeping engines."""
    settings = config.validate({"engine": {"actors": engines, "batch_size": QUESTIONS_PER_UNIT, "concurrent_batches": 2}})
    turns = rollouts.Turns(1, corrections, settings.sampling.initial, settings.sampling.correction)
    return rollouts.Job("none", "base", settings, {"train": turns}, str(destination), on_cuda=False)


def make_actor(tokens_per_s: float) -> type[rollouts.RolloutActor]:
    """SleepingActor at that rate; a class, because the pipeline gives an actor nothing but the job."""

    class Actor(SleepingActor):
        def __init__(self, job: rollouts.Job) -> None:
            super().__init__(job, tokens_per_s)

    return Actor


if __name__ == "__main__":
    main()
