"""The comparisons that need a GPU: models of Qwen2.5-1.5B's and SmolLM2-135M's shape with random weights,
texts of NQ's lengths.

python -m benchmarks.gpu --folder runs/bench-gpu --write docs/performance.md
python -m benchmarks.gpu --model FOLDER      a real model
python -m benchmarks.gpu --tiny              on a CPU, little work: does it run at all?

Of each model: generation against one bare `vllm.LLM`; the utilization of the fine-tune; and a run's second
iteration against the same tokens at those two rates, with its hand-over and the GPU's memory stage by stage.
Figures are kept in gpu.json in the folder as they come. What `--budget-s` leaves out is named, and measured
by the same command later. Without a CUDA device it says so and ends.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import baselines, gpu_watch, gpu_work, speed, speed_table
from benchmarks.gpu_work import QWEN, SMOLLM2, TINY
from benchmarks.speed_table import Row
from benchmarks.whole_runs import published, run_s, stage_seconds
from stasc_ray import store
from stasc_ray.learning import flops
from stasc_ray.runtime import model_folder, ray_session

MARKS = ("<!-- gpu table: written by benchmarks/gpu.py -->", "<!-- end of the gpu table -->")
TRAIN_STEPS = 24
"""Of the fine-tune alone; the first 8 warm up."""
LEAST_S = 30.0
"""No measurement begins with less time than that."""
Found = dict[str, Any]
"""Of each measurement its figures, by `model/row/number/side`."""


@dataclass(frozen=True)
class Bench:
    """What is measured, and with how much work."""

    folder: Path
    model: str
    """Name of a shape, or a folder."""
    overrides: Sequence[str]
    """Of gpu.toml."""
    questions: int
    device: str

    @property
    def name(self) -> str:
        """In keys and in the table."""
        return Path(self.model).name

    def path(self) -> str:
        """The model's folder; random weights are made at the first call."""
        if self.model in gpu_work.SHAPES:
            return gpu_work.model(self.model, self.folder, self.device)
        return str(Path(self.model).resolve())

    @cached_property
    def work(self) -> dict[str, Any]:
        """What speed.py's and baselines.py's functions take."""
        folder, batch = self.folder / f"work-{self.name}", 8 if self.device == "cpu" else 64
        numbers = (self.questions, (2 if self.device == "cpu" else TRAIN_STEPS) * batch)
        return gpu_work.make_work(folder, self.path(), self.overrides, numbers=numbers)


# --- what is measured
# --------------------------------------------------------------------------------------------


def ours_generation(bench: Bench, limit_s: float) -> dict[str, Any]:
    """Both turns of the train questions through Ray Data."""
    return baselines.in_process("ours_generation", bench.work, "benchmarks.speed", limit_s)


def bare_generation(bench: Bench, limit_s: float) -> dict[str, Any]:
    """The same by one bare engine."""
    return baselines.in_process("bare_vllm", bench.work, timeout_s=limit_s)


def training(bench: Bench, limit_s: float) -> dict[str, Any]:
    """The fine-tune alone, in Ray Train."""
    return baselines.in_process("ours_training", bench.work, "benchmarks.speed", limit_s)


def whole_run(bench: Bench, limit_s: float) -> dict[str, Any]:
    """A run of two iterations: the seconds of its second one, part by part; with the memory of each stage."""
    folder, deadline = bench.folder / f"run-{bench.name}", time.monotonic() + limit_s
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = model_folder.load_tokenizer(bench.path())
    values = [f"model.path={bench.path()!r}", *bench.overrides]
    for split, number in (("train", bench.questions), ("dev", 50), ("test", 50)):
        rows = gpu_work.questions(min(number, bench.questions), split, tokenizer)
        file = folder.resolve() / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values.append(f"questions.{split}.source={str(file)!r}")
    run = folder / time.strftime("%H%M%S")  # each measurement is a run from its start
    with gpu_watch.watching() as samples:
        run_s(gpu_work.CONFIG, run, values, until=lambda: time.monotonic() > deadline)
    if not published(run, 2):
        raise TimeoutError(f"{run}: expected two iterations within {limit_s:.0f} s; give --budget-s more")
    (line,) = [one for one in store.RunFolder(run).metrics() if (one["stage"], one["iteration"]) == ROLLOUTS]
    more = {"engines_started": line["rollouts/engines_started"]}
    return {**stage_seconds(run, 2), **more, "peaks_gb": gpu_watch.peaks_by_stage(run, samples)}


ROLLOUTS = ("rollouts", 2)
"""Stage and iteration whose hand-over is measured."""
SIDES: Mapping[str, Callable[[Bench, float], dict[str, Any]]] = {
    "generation/ours": ours_generation,
    "generation/bare": bare_generation,
    "training/ours": training,
    "run/ours": whole_run,
}


def plan(model: str, pairs: int) -> Iterator[tuple[str, str]]:
    """Keys of the measurements of a model, and names in SIDES, in their order; the two sides of a pair take
    turns at being first.
    """
    for number in range(pairs):
        for side in sorted(("ours", "bare"), reverse=number % 2 == 0):
            yield f"{model}/generation/{number}/{side}", f"generation/{side}"
    for row in ("training", "run"):
        yield f"{model}/{row}/0/ours", f"{row}/ours"


def measure(
    benches: Sequence[Bench], pairs: int, results: Path, budget_s: float, about: Mapping[str, Any]
) -> tuple[Found, list[str]]:
    """All that is missing in `results`, as far as the time goes; the figures, and what is still missing, each
    with the reason.

    Raises:
        SystemExit: `results` has figures of something else than `about`.
    """
    found: Found = json.loads(results.read_text()) if results.exists() else {"about": about}
    if found["about"] != about:
        raise SystemExit(
            f"{results}: expected figures of {about}, found some of {found['about']}; move it away"
        )
    deadline, missing = time.monotonic() + budget_s, list[str]()
    for bench in benches:
        for key, side in plan(bench.name, pairs):
            if key in found:
                continue
            left = deadline - time.monotonic()
            if left < LEAST_S:
                missing.append(f"{key}: no time left of --budget-s")
                continue
            try:
                with gpu_watch.watching() as samples:
                    figures = SIDES[side](bench, left)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # others are worth having
                missing.append(f"{key}: {' '.join(str(error).split())[-400:]}")
                print(f"{key}: {error}", file=sys.stderr, flush=True)
                continue
            found[key] = {**figures, **gpu_watch.figures(samples)}
            store.write_atomically(results, json.dumps(found, indent=1))
            print(f"{key}: {json.dumps(found[key])}", flush=True)
    return found, missing


# --- the table
# ----------------------------------------------------------------------------------------------------


def rows(found: Found, model: str) -> Iterator[Row]:
    """The lines of what was measured of a model. Goals are for the 1.5B shape on one H100."""
    pairs = [
        (found[key]["tokens_per_s"], found[other]["tokens_per_s"])
        for key in found
        if key.startswith(f"{model}/generation/")
        and key.endswith("/ours")
        and (other := key.removesuffix("ours") + "bare") in found
    ]
    trained, run = found.get(f"{model}/training/0/ours"), found.get(f"{model}/run/0/ours")
    bare = statistics.median(pair[1] for pair in pairs) if pairs else None
    if bare:
        ours = f"{statistics.median(pair[0] for pair in pairs):,.0f} tokens/s"
        ratios = [pair[0] / pair[1] for pair in pairs]
        yield Row(f"{model}: two-turn generation", ours, f"bare `vllm.LLM`: {bare:,.0f}", ratios, ">= 0.97")
    if trained:
        yield _training(trained, model)
    if run and trained and bare:
        yield _iteration(run, bare, trained["tokens_per_s"], model)
    if run:
        started = run["engines_started"]
        how = f"with {started} engine(s) STARTED ANEW" if started else "no engine started"
        what = f"{model}: hand-over of weights, canary included"
        yield Row(what, f"{run['hand-over']:.2f} s", how, [run["hand-over"]], "<= 5", "s")


def _training(trained: Mapping[str, float], model: str) -> Row:
    step = trained["tokens_per_s"] * trained["train_s"] / trained["steps"]
    what, rate = (
        f"{model}: fine-tuning, {step:,.0f} tokens a step",
        f"{trained['tokens_per_s']:,.0f} tokens/s",
    )
    if "mfu" not in trained:
        return Row(what, rate, "", [trained["tokens_per_s"]], unit="tokens/s")
    goal = ">= 0.35" if model == QWEN else "printed"
    return Row(what, rate, "the GPU's bfloat16 peak", [trained["mfu"]], goal, "utilization")


def _iteration(run: Mapping[str, float], bare: float, training_rate: float, model: str) -> Row:
    work = run["generated_tokens"] / bare + run["trained_on_tokens"] / training_rate
    over = run["wall"] - work
    against = f"the same tokens at these two rates: {work:.0f} s; {over:.0f} s more, which is 15% from {over / 0.15:,.0f} s"
    what = f"{model}: iteration 2 of a run"
    return Row(what, f"{run['wall']:.0f} s", against, [run["wall"] / work], "<= 1.15", "times as long")


def page(found: Found, models: Sequence[str], missing: Sequence[str]) -> Iterator[str]:
    """The table, where an iteration's seconds and the GPU's memory go, and what is missing."""
    yield from speed_table.table(row for model in models for row in rows(found, model))
    for model in models:
        yield ""
        if trained := found.get(f"{model}/training/0/ours"):
            yield from _peak(f"{model}, the fine-tune alone", trained)
        if run := found.get(f"{model}/run/0/ours"):
            not_parts = {"wall", "peaks_gb", "peak_gb", "gpu_idle_share", "engines_started"}
            parts = [name for name in run if name not in not_parts and not name.endswith("tokens")]
            yield f"{model}, iteration 2: " + ", ".join(f"{name} {run[name]:.1f} s" for name in parts) + "."
            yield from _peak(f"{model}, the run", run)
    yield from (f"\nNot measured: {text}" for text in missing)


def _peak(what: str, figures: Mapping[str, Any]) -> Iterator[str]:
    if "peak_gb" in figures:
        stages = "".join(f", {stage} {gb:.1f}" for stage, gb in figures.get("peaks_gb", {}).items())
        idle = f"idle in {figures['gpu_idle_share']:.0%} of the looks"
        yield f"{what}: at most {figures['peak_gb']:.1f} GiB of GPU memory{stages}; {idle}."


def device_of(tiny: bool) -> str | None:
    """What it is measured on; None without a CUDA device.

    Raises:
        SystemExit: the GPU's peak is not known.
    """
    import torch

    if tiny:
        return "a CPU, tiny"
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    if flops.peak_flops(name) is None:
        known = ", ".join(flops.PEAK_FLOPS)
        raise SystemExit(f"PEAK_FLOPS: expected one of {known} in the device's name, found {name!r}; add it")
    return name


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ends with a message where it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=(QWEN, SMOLLM2), default=(QWEN, SMOLLM2))
    parser.add_argument("--model", type=Path, help="a folder with a real model, in their place")
    parser.add_argument("--pairs", type=int, default=1, help="of generation (%(default)s)")
    parser.add_argument("--questions", type=int, default=300, help="train questions (%(default)s)")
    parser.add_argument("--budget-s", type=float, default=480, help="seconds for all (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with a tiny shape")
    parser.add_argument(
        "--folder", type=Path, help="for models, questions and figures; default: one that goes away"
    )
    parser.add_argument("--write", type=Path, help="Markdown file with the marks, e.g. docs/performance.md")
    found = parser.parse_args(arguments)
    if found.model and not (found.model / "config.json").is_file():
        parser.error(f"--model: expected a folder with a config.json, found none in {found.model}")
    if found.tiny and found.write:
        parser.error("--tiny: expected no --write, since its figures mean nothing")
    if found.write:
        speed_table.check_marks(found.write, MARKS)
    return found


def main() -> None:
    """Measure on the CUDA device that is there."""
    arguments = read_arguments()
    name = device_of(arguments.tiny)
    if name is None:
        print("bench-gpu: expected a CUDA device, found none; nothing was measured")
        return
    device, overrides = ("cpu", gpu_work.ON_CPU) if arguments.tiny else ("cuda", ())
    models = [str(arguments.model)] if arguments.model else [TINY] if arguments.tiny else arguments.models
    questions = min(arguments.questions, 16) if arguments.tiny else arguments.questions
    with speed.work_folder(arguments.folder) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        benches = [Bench(folder, model, overrides, questions, device) for model in models]
        about = {"device": name, "commit": speed.commit(), "questions": questions, **ray_session.versions()}
        found, missing = measure(benches, arguments.pairs, folder / "gpu.json", arguments.budget_s, about)
    told = f"{name}; {speed.machine()} Commit {about['commit']}. {questions} questions."
    text = "\n".join([told, "", *page(found, [bench.name for bench in benches], missing)])
    print(text)
    if arguments.write:
        speed.write_between_marks(arguments.write, text, MARKS)


if __name__ == "__main__":
    main()
