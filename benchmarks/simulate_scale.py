"""How generation scales, by simulation: the real rollouts pipeline, with engines that sleep as a GPU would.

python -m benchmarks.simulate_scale --output docs/scaling.json --plot docs/scaling.png
python -m benchmarks.simulate_scale --engines 1 4 --questions-sweep 3200    a smaller look

Ray Data, reading, grading, writing and the commit of every unit are real; an engine only waits as long as a
GPU would take for the tokens (RATES) and answers with text of that length. Nodes are fake: raylets on this
machine that claim more CPUs than there are, one for 16 engines. Prompts are not rendered, so a tokenizer's
CPU time is not in the figures.

Two sweeps. Over engines: efficiency, the time the engines needed for their tokens over the time they were
there, 1 if none ever waited for work. Over questions: the driver's memory and time. The driver sees units but
never a question, so a unit holds one question here and is answered at once: 3,125 units stand for the 100,000
questions that they hold at QUESTIONS_PER_UNIT, and unit_files.MAX_UNITS for the million.
"""

import argparse
import asyncio
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.generation import rollouts, run_engines, unit_files
from stasc_ray.generation.engines import EngineActor
from stasc_ray.generation.samples import Request, Sample
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.generation.unit_rollout import Job, UnitRollout
from stasc_ray.recipes import section_of
from stasc_ray.tasks import questions

RATES = {"1.5B on one A100": 9_600, "7B on one A100": 2_400, "14B on one A100": 1_200}
"""Generated tokens per second of one full engine. Assumptions, not measurements."""
ANSWER_TOKENS = 256
"""The longest answer of jobs/configs/nq_qwen2.5_1.5b.toml."""
QUESTIONS_PER_UNIT = 32
AT_ONCE = 10**12
"""Tokens per second of the engines in the sweep over questions, where only what is around them counts."""
ENGINES_PER_NODE = 16


class NoChat:
    """Renders every conversation as nothing, in no time."""

    longest_token = sys.maxsize  # of characters, so that no prompt counts as too long

    def render(self, *_: Any, **__: Any) -> list[int]:
        """No tokens."""
        return []

    def opens(self, _: Any) -> bool:
        """No reasoning."""
        return False


class SleepingActor(EngineActor):
    """An engine that produces tokens at a fixed rate, one queue for all that is in flight, as a saturated GPU
    does.
    """

    def __init__(self, _: str, spec: EngineSpec) -> None:
        self.tokens_per_s = float(os.environ["TOKENS_PER_S"])
        self.free_at, self.begun, self.tokens = 0.0, 0.0, 0

    async def begin(self, job: Job) -> str:
        """As an engine; writes its clock beside the traces."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        chat: Any = NoChat()
        self._rollout = UnitRollout(job, chat, self._generate, node)
        self.clock = Path(job.destination) / f"clock-{os.getpid()}.json"
        return node

    async def _generate(self, token_ids: list[int], request: Request, _: object) -> list[Sample]:
        """The samples of one prompt, when a GPU would have them."""
        tokens = request.n * ANSWER_TOKENS
        now = time.time()
        self.begun = self.begun or now
        self.free_at = max(self.free_at, now) + tokens / self.tokens_per_s
        self.tokens += tokens
        await asyncio.sleep(max(self.free_at - time.time(), 0))
        return [Sample("word " * ANSWER_TOKENS, (0,) * ANSWER_TOKENS, "stop")] * request.n

    async def roll_out(self, unit: Any) -> Any:
        """One unit, and what this engine has done so far."""
        assert self._rollout is not None, "the pool begins a pass before it sends units"
        done = await self._rollout.unit(unit)
        self.clock.write_text(json.dumps({"begun": self.begun, "ended": time.time(), "tokens": self.tokens}))
        return done

    async def close(self) -> None:
        """Nothing to end but the process."""
        from ray.actor import exit_actor

        exit_actor()


def main() -> None:
    """Parse the command line, simulate each size, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument(
        "--units",
        type=int,
        nargs="+",
        default=[4],
        help=f"per engine, {QUESTIONS_PER_UNIT} questions each; one for all sizes or one each",
    )
    parser.add_argument("--questions-sweep", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--corrections", type=int, default=5, help="corrections per question")
    parser.add_argument("--gpu", choices=sorted(RATES), default="14B on one A100")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--plot", type=Path, help="PNG file")
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--one", nargs=4, type=int, metavar=("ENGINES", "UNITS", "PER_UNIT", "RATE"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.one:
        engines, units, per_unit, rate = arguments.one
        print("\n" + json.dumps(one(engines, units, per_unit, arguments.corrections, rate)))
        return
    if arguments.load:
        print("\n" + json.dumps(load(arguments.load)))
        return
    rate = RATES[arguments.gpu]
    each = arguments.units * len(arguments.engines) if len(arguments.units) == 1 else arguments.units
    sizes = {
        "engines": [
            (n, n * units, QUESTIONS_PER_UNIT, rate) for n, units in zip(arguments.engines, each, strict=True)
        ],
        "questions": [(4, units_of(questions), 1, AT_ONCE) for questions in arguments.questions_sweep],
    }
    found: dict[str, list[dict[str, Any]]] = {"engines": [], "questions": []}
    for sweep, wanted in sizes.items():
        for number, size in enumerate(wanted):
            row = in_process("--one", *map(str, size), "--corrections", str(arguments.corrections))
            if sweep == "questions":
                stands_for = arguments.questions_sweep[number]
                row |= {"stands_for": stands_for, **in_process("--load", str(stands_for))}
            found[sweep].append(row)
            print(json.dumps(row), flush=True)
    machine = {
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
    }
    for rows in found.values():
        print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        for row in rows:
            values = (f"{value:.3g}" if isinstance(value, float) else f"{value:,}" for value in row.values())
            print("| " + " | ".join(values) + " |")
    if arguments.output:
        arguments.output.write_text(
            json.dumps({"machine": machine, "gpu": arguments.gpu, **found}, indent=2) + "\n"
        )
    if arguments.plot:
        plot(
            found,
            arguments.plot,
            f"{arguments.gpu} ({rate:,} tokens/s), simulated on {machine['cores']} cores",
        )


def in_process(*arguments: str) -> dict[str, Any]:
    """One measurement in a process of its own: a driver's memory never shrinks."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.simulate_scale", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def load(count: int) -> dict[str, float]:
    """What a run does before its first pass: read, check and shuffle a JSONL file, write it unit by unit."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        for split, rows in (("train", count), ("dev", 10), ("test", 10)):
            with (Path(folder) / f"{split}.jsonl").open("w") as lines:
                for number in range(rows):
                    text = f"{split} question {number}: which of the following is true of the thing in question, and of what else?"
                    lines.write(json.dumps({"question": text, "answers": ["yes"]}) + "\n")
        given = [f"questions.{split}.source={folder}/{split}.jsonl" for split in ("train", "dev", "test")]
        settings = config.load_config(None, given, section_of)
        started = time.time()
        rows = questions.load_questions(settings.questions, settings.seed).rows
        for split in ("train", "dev", "test"):
            of_split = [row for row in rows if row["split"] == split]
            unit_files.write_questions(of_split, Path(folder) / f"{split}.parquet", QUESTIONS_PER_UNIT)
        seconds = time.time() - started
    return {"loading_s": seconds, "loading_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def one(engines: int, units: int, per_unit: int, corrections: int, tokens_per_s: float) -> dict[str, Any]:
    """One size on a fresh cluster of fake nodes; returns what `simulate` returns."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["TOKENS_PER_S"] = str(tokens_per_s)  # which the nodes' processes inherit
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 300 * 2**20}
    )
    for first in range(0, engines, ENGINES_PER_NODE):
        cluster.add_node(num_cpus=min(ENGINES_PER_NODE, engines - first) + 1, object_store_memory=300 * 2**20)
    ray.init(address=cluster.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        return simulate(engines, units, per_unit, corrections, tokens_per_s)
    finally:
        ray.shutdown()
        cluster.shutdown()


def simulate(
    engines: int, units: int, per_unit: int, corrections: int, tokens_per_s: float
) -> dict[str, Any]:
    """Run one size; returns the figures of one row."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        file = Path(folder) / "train.parquet"
        unit_files.write_questions([question(number) for number in range(units * per_unit)], file, per_unit)
        destination = Path(folder) / "rollouts"
        destination.mkdir()
        plan = unit_files.question_units(file, "train")
        job = make_job(destination, engines, per_unit, corrections)
        started, cpu = time.time(), time.process_time()
        with run_engines.engines(job.settings, on_cuda=False, training=False, actor=SleepingActor) as made:
            rows = list(rollouts.roll_out(job, plan, made))
        wall_s, cpu_s = time.time() - started, time.process_time() - cpu
        clocks = [json.loads(file.read_text()) for file in destination.glob("clock-*.json")]
    answered, failed = (sum(row[what] for row in rows) for what in ("questions", "errors"))
    assert (answered, failed) == (units * per_unit, 0), (
        f"expected {units * per_unit} questions, found {answered}, and {failed} that failed: {rows[0]['messages']}"
    )
    there_s = max(clock["ended"] for clock in clocks) - min(clock["begun"] for clock in clocks)
    busy_s = sum(clock["tokens"] for clock in clocks) / tokens_per_s
    return {
        "engines": engines,
        "units": units,
        "questions": answered,
        "efficiency": busy_s / (engines * there_s),
        "questions_per_s": answered / there_s,
        "wall_s": wall_s,
        "driver_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "driver_cpu_ms_per_unit": 1000 * cpu_s / units,
    }


def plot(found: dict[str, list[dict[str, Any]]], file: Path, title: str) -> None:
    """Efficiency over engines, the driver's memory over questions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=10)
    panels = (
        (left, "engines", "engines", "efficiency", 0.95, "efficiency of the engines", 1.05),
        (right, "questions", "questions", "driver_gb", 1.5, "driver's memory, GB at its peak", 1.7),
    )
    for axes, sweep, label, name, target, what, top in panels:
        at = [row["stands_for" if sweep == "questions" else "engines"] for row in found[sweep]]
        axes.plot(at, [row[name] for row in found[sweep]], marker="o", color="#1f6feb")
        if sweep == "questions":
            axes.plot(at, [row["loading_gb"] for row in found[sweep]], marker="s", color="#8c8c8c")
            axes.legend(["in a pass", "reading the questions in"], loc="center left", fontsize=8)
        axes.axhline(target, color="#888888", linestyle="--", linewidth=1)
        axes.annotate(
            f"target {target}",
            (0.02, target),
            xycoords=("axes fraction", "data"),
            va="top",
            color="#666666",
            fontsize=8,
        )
        axes.set_xscale("log", base=2 if sweep == "engines" else 10)
        axes.minorticks_off()
        axes.set_xticks(at, [f"{tick:,}" for tick in at])
        axes.set(xlabel=label, ylim=(0, top))
        axes.set_title(what, fontsize=10)
        axes.grid(alpha=0.25)
    figure.savefig(file, dpi=110)


def units_of(questions: int) -> int:
    """As `unit_files.write_questions` cuts them."""
    return math.ceil(questions / max(QUESTIONS_PER_UNIT, math.ceil(questions / unit_files.MAX_UNITS)))


def question(number: int) -> dict[str, Any]:
    """One made-up question of a usual length."""
    text = f"Question {number}: " + "which of the following is true of the thing in question? " * 5
    return {
        "id": f"{number:09d}",
        "question": text,
        "answers": ["yes"],
        "split": "train",
        "documents": [],
        "choices": [],
    }


def make_job(destination: Path, engines: int, per_unit: int, corrections: int) -> Job:
    """A pass over train questions with that many sleeping engines."""
    settings = config.validate(
        {
            "engine": {"actors": engines, "batch_size": per_unit, "concurrent_batches": 2},
            "algorithm": {"n_initial": 1, "n_corrections": corrections},
        },
        section_of,
    )
    return Job("none", 0, settings, str(destination), on_cuda=False)


if __name__ == "__main__":
    main()
