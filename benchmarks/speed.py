"""How fast stasc_ray is against the bare engines that it stands on, and against what one would write without
it.

python -m benchmarks.speed                            every row, five pairs; about an hour on two cores
python -m benchmarks.speed --quick                    each row once, on little work: does it run at all?
python -m benchmarks.speed --rows training startup    only those
python -m benchmarks.speed --write docs/performance.md    puts the table between the marks in that file

Both sides of a row run in turn, each in a process of its own (baselines.py has the other side), and take
turns at being first. A row's ratio is the median over its pairs, with the smallest and the largest beside it.
Results are kept in `--results` as they come, and rows found there are not measured again.
"""

import argparse
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import baselines
from stasc_ray import config, store
from stasc_ray.generation import pool, rollouts, unit_files
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.learning import packing
from stasc_ray.recipes import section_of, trace
from stasc_ray.recipes.recipe import written
from stasc_ray.runtime import capacity, ray_session
from stasc_ray.tasks import prompts, sandbox

DEMO = Path(__file__).parent.parent / "jobs" / "configs" / "demo.toml"
QUESTIONS = {"train": 1000, "dev": 250, "test": 500}
N_CORRECTIONS = 4
MARKS = ("<!-- table: written by benchmarks/speed.py -->", "<!-- end of the table -->")
Work = dict[str, Any]
Pair = dict[str, dict[str, float]]


# --- ours, each in a process of its own
# --------------------------------------------------------------------------


def ours_generation(work: Work) -> dict[str, float]:
    """Both turns of the train questions through Ray Data, on engines that have answered some before: from the
    first unit's arrival to the last file, grading included.
    """
    settings = baselines.read_config(work)
    destination, warm_up = Path(work["folder"]) / "rollouts", Path(work["folder"]) / "warm-up"
    for folder in (destination, warm_up):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    with (
        ray_session.connect(None, Path(work["folder"]) / "logs", worker_niceness=0),
        pool.engines(settings, work["on_cuda"], training=False) as engines,
    ):
        job = Job(work["model"], 0, settings, str(destination), on_cuda=work["on_cuda"])
        rows = pq.read_table(work["train"]).to_pylist()[: baselines.WARM_UP]
        unit_files.write_questions(rows, warm_up / "train.parquet", math.ceil(len(rows) / 2))
        few = unit_files.question_units(warm_up / "train.parquet", "train")
        list(rollouts.roll_out(replace(job, destination=str(warm_up)), few, engines))
        start_s = engines.report().start_s
        units = unit_files.question_units(Path(work["train"]), "train")
        found = list(rollouts.roll_out(job, units, engines))
        begun = min(file.stat().st_mtime for file in destination.glob(".*.begun"))
        seconds = max(file.stat().st_mtime for file in destination.glob("*.parquet")) - begun
    tokens = sum(count for row in found for count in json.loads(row["tokens"]).values())
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds, "start_s": start_s}


def ours_training(work: Work) -> dict[str, float]:
    """The fine-tune in Ray Train: its loop's tokens per second, as `stasc run` reports them."""
    import ray

    from stasc_ray.learning import finetune
    from stasc_ray.learning.job import FinetuneJob

    settings = baselines.read_config(work)
    lines = [json.loads(line) for line in Path(work["examples"]).read_text().splitlines()]
    with (
        ray_session.connect(None, Path(work["folder"]) / "logs", worker_niceness=0),
        tempfile.TemporaryDirectory() as folder,
    ):
        job = FinetuneJob.of(
            settings,
            work["model"],
            output=Path(folder) / "model",
            storage=Path(folder) / "state",
            iteration=1,
            on_cuda=work["on_cuda"],
        )
        examples = ray.data.from_items([{"id": str(number), **line} for number, line in enumerate(lines)])
        found = finetune.finetune(examples, job)
    return {name: found[name] for name in ("tokens_per_s", "train_s", "start_s", "duration_s")}


# --- the rows
# ----------------------------------------------------------------------------------------------------


class Bench:
    """Where the work lies, what was measured already, and how to measure the rest."""

    def __init__(self, folder: Path, results: Path, quick: bool, pairs: int) -> None:
        self.folder, self.results, self.quick, self.pairs = folder, results, quick, pairs
        about = {"quick": quick, "commit": commit(), **ray_session.versions()}
        self.found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {"about": about}
        if self.found["about"] != about:
            raise SystemExit(
                f"{results}: expected figures of {about}, found some of {self.found['about']}; move the file "
                f"away"
            )
        share = 20 if quick else 1
        overrides = [f"questions.{split}.limit={limit // share}" for split, limit in QUESTIONS.items()]
        overrides.append(f"algorithm.n_corrections={N_CORRECTIONS}")
        if quick:
            overrides += ["algorithm.iterations=3", "engine.kv_cache_gb=0.25"]
        self.overrides, self.has_examples = overrides, False
        self.settings = config.load_config(DEMO, overrides, section_of)
        self.work = self._work()

    def _work(self) -> Work:
        self.folder.mkdir(parents=True, exist_ok=True)
        work: Work = {
            "config": config.to_json(self.settings),
            "model": str(sandbox.model_path()),
            "threads": ray_session.cores(),
            "n_corrections": N_CORRECTIONS,
            "batch_size": self.settings.finetune.batch_size,
            "max_length_tokens": self.settings.finetune.max_length_tokens,
            "capacity": packing.CPU_CAPACITY_TOKENS,  # a GPU would pack
            "folder": str(self.folder),
            "examples": str(self.folder / "examples.jsonl"),
            "on_cuda": False,
        }
        for split in QUESTIONS:
            rows = sandbox.questions(
                split, getattr(self.settings.questions, split).limit, seed=self.settings.seed
            )
            work[split] = str(self.folder / f"{split}.parquet")
            unit_files.write_questions(rows, Path(work[split]), self.settings.engine.batch_size)
        return work

    def ours(self, name: str, **more: Any) -> dict[str, float]:
        """One of the functions above, in its own process."""
        return baselines.in_process(name, {**self.work, **more}, "benchmarks.speed")

    def theirs(self, name: str, **more: Any) -> dict[str, float]:
        """One of the baselines, in its own process."""
        return baselines.in_process(name, {**self.work, **more})

    def measured(self, row: str, one: Callable[[], Any], times: int) -> list[Any]:
        """The row's figures, measured so often; kept as they come."""
        kept = self.found.setdefault(row, [])
        while len(kept) < times:
            kept.append(one())
            store.write_atomically(self.results, json.dumps(self.found, indent=1))
            print(f"{row} {len(kept)}/{times}: {json.dumps(kept[-1])}", flush=True)
        return kept

    def turns(self, row: str, sides: Mapping[str, Callable[[], dict[str, float]]]) -> None:
        """All sides of a row, one after another, taking turns at being first."""

        def one() -> Pair:
            return {side: sides[side]() for side in sorted(sides, reverse=len(self.found[row]) % 2 == 0)}

        self.measured(row, one, self.pairs)

    def pair(self, row: str, ours: str, theirs: str, **more: Any) -> None:
        """Two sides; `more` is for theirs."""
        self.turns(row, {"ours": lambda: self.ours(ours), "against": lambda: self.theirs(theirs, **more)})

    def write_examples(self) -> None:
        """Training messages of real lengths: two corrections of each question, as the sandbox model wrote
        them.
        """
        if self.has_examples:
            return
        self.ours("ours_generation")
        rows = [
            row
            for file in sorted((self.folder / "rollouts").glob("train-*.parquet"))
            for row in pq.read_table(file).to_pylist()
        ]
        texts = self.settings.prompts
        with Path(self.work["examples"]).open("w") as lines:
            for row in rows:
                found = trace.read_texts(row)
                for answer in trace.roots(found):
                    asked = prompts.correction_messages(row, answer.text, texts)
                    for text in trace.corrections(found, answer)[:2]:
                        if text.text.strip():
                            lines.write(json.dumps({"messages": [*asked, written(text.text)]}) + "\n")
        self.has_examples = True


def generation(bench: Bench) -> None:
    """Two turns through Ray Data, as many engines as the demo has, against one vllm.LLM; beside them, through
    Ray Data with one.
    """
    one_engine = config.to_json(config.load_config(DEMO, [*bench.overrides, "engine.actors=1"], section_of))
    sides = {
        "ours": lambda: bench.ours("ours_generation"),
        "against": lambda: bench.theirs("bare_vllm"),
        "one_engine": lambda: bench.ours("ours_generation", config=one_engine),
    }
    bench.turns("generation", sides)


def ray_data_llm(bench: Bench) -> None:
    """The same against chained processors of ray.data.llm."""
    bench.pair("ray_data_llm", "ours_generation", "ray_data_llm")


def training(bench: Bench) -> None:
    """Ray Train against a bare loop with as many threads; beside them, the bare loop with a thread on every
    core.
    """
    bench.write_examples()
    sides = {
        "ours": lambda: bench.ours("ours_training"),
        "against": lambda: bench.theirs(
            "bare_torch", threads=capacity.trainer_threads(1, ray_session.cores())
        ),
        "all_cores": lambda: bench.theirs("bare_torch"),
    }
    bench.turns("training", sides)


def hf_trainer(bench: Bench) -> None:
    """Ray Train against Hugging Face's Trainer, with as many threads."""
    bench.write_examples()
    bench.pair(
        "hf_trainer", "ours_training", "hf_trainer", threads=capacity.trainer_threads(1, ray_session.cores())
    )


def iteration(bench: Bench) -> None:
    """The demo's iterations 2 and 3, stage by stage; then, from the same model, the bare rates and the
    reference's way.
    """
    bench.write_examples()

    def one() -> Pair:
        with tempfile.TemporaryDirectory() as temporary:
            run = Path(temporary) / "demo"
            command = [
                sys.executable,
                "-m",
                "stasc_ray.cli",
                "run",
                str(DEMO),
                "--run-dir",
                str(run),
                *bench.overrides,
            ]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(
                    f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
                )
            stages = {f"iteration_{number}": stage_seconds(run, number) for number in (2, 3)}
            model = str(run / "iteration_01" / "model")
            rates = {
                "generation": bench.theirs("bare_vllm", model=model)["tokens_per_s"],
                "training": bench.theirs("bare_torch", model=model)["tokens_per_s"],
            }
            reference = bench.theirs("reference_whole", model=model, folder=temporary)
        return {**stages, "bare": rates, "reference": reference}

    bench.measured("iteration", one, 1 if bench.quick else 3)


def stage_seconds(run: Path, number: int) -> dict[str, float]:
    """Where the wall time of an iteration went, from the run's metrics.jsonl."""
    lines = store.RunFolder(run).metrics()
    before = max(line["time"] for line in lines if line["iteration"] == number - 1)
    of = {line["stage"]: line for line in lines if line["iteration"] == number}
    train, generate = of["finetune"], of["rollouts"]
    wall = of["publish"]["time"] - before
    parts = {
        "selection": of["examples"]["examples/duration_s"],
        "trainer start": train["finetune/start_s"],
        "training": train["finetune/train_s"],
        "export": train["finetune/export_s"],
    }
    parts["trainer end"] = train["finetune/duration_s"] - sum(
        train[f"finetune/{name}_s"] for name in ("start", "train", "export")
    )
    parts |= {
        "engine start": generate["rollouts/engine_start_s"],
        "generation": generate["rollouts/duration_s"] - generate["rollouts/engine_start_s"],
        "evaluation": of["evaluation"]["evaluation/duration_s"],
    }
    return {
        "wall": wall,
        **parts,
        "the rest": wall - sum(parts.values()),
        "generated_tokens": generate["rollouts/generated_tokens"],
        "trained_on_tokens": train["finetune/tokens_per_s"] * train["finetune/train_s"],
    }


def serving(bench: Bench) -> None:
    """Corrections over HTTP against the same engine driven directly (benchmarks/serve.py)."""

    def one() -> Any:
        command = [sys.executable, "-m", "benchmarks.serve", "--pairs", "1"]
        command += ["--questions", "20" if bench.quick else "400"]
        command += ["--served-first"] if len(bench.found["serving"]) % 2 else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[0])

    bench.measured("serving", one, bench.pairs)


def startup(bench: Bench) -> None:
    """`stasc --help`, and `stasc run` until the first eight questions are answered and corrected."""

    def help_s() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "stasc_ray.cli", "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    def first_answers_s() -> float:
        with tempfile.TemporaryDirectory() as temporary:
            run = Path(temporary) / "run"
            command = [sys.executable, "-m", "stasc_ray.cli", "run", str(DEMO), "--run-dir", str(run)]
            command += [*bench.overrides, "engine.batch_size=8"]
            started = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while not list(run.glob("base/rollouts/*.parquet")):
                    if process.poll() is not None:
                        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
                    time.sleep(0.05)
                seconds = time.perf_counter() - started
                process.terminate()
        return seconds

    bench.measured("help_s", help_s, bench.pairs)
    bench.measured("first_answers_s", first_answers_s, 1 if bench.quick else 3)


ROWS = (generation, ray_data_llm, training, hf_trainer, iteration, serving, startup)


# --- the table
# ---------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Markdown lines, of the rows that were measured."""
    yield "| what | ours | against | ratio: median (least to most) | target |"
    yield "|---|---|---|---|---|"
    bare_loop = "a bare torch loop on tensors made before, as many threads"
    for row, what, ours, against, other, target in (
        (
            "generation",
            "two-turn generation, engines warm",
            "ours",
            "against",
            "one bare `vllm.LLM`",
            ">= 0.95",
        ),
        ("generation", "the same with one engine", "one_engine", "against", "the same", "printed"),
        (
            "ray_data_llm",
            "two-turn generation",
            "ours",
            "against",
            "`ray.data.llm`, a processor per turn",
            ">= 3",
        ),
        ("training", "fine-tuning", "ours", "against", bare_loop, ">= 0.95"),
        (
            "training",
            "the same, a core left for Ray",
            "ours",
            "all_cores",
            "that loop with a thread on every core",
            "printed",
        ),
        (
            "hf_trainer",
            "fine-tuning",
            "ours",
            "against",
            "Hugging Face `Trainer`, padded, as many threads",
            ">= 2",
        ),
    ):
        if pairs := found.get(row):
            rates, others = ([pair[side]["tokens_per_s"] for pair in pairs] for side in (ours, against))
            ratios = [one / other for one, other in zip(rates, others, strict=True)]
            sides = f"{statistics.median(rates):,.0f} tokens/s | {other}: {statistics.median(others):,.0f} tokens/s"
            yield f"| {what} | {sides} | {spread(ratios)} | {target} |"
    if found.get("iteration"):
        yield from _iteration_rows(found)
    if pairs := found.get("serving"):
        ours, against = ([pair[side]["questions_per_s"] for pair in pairs] for side in ("served", "direct"))
        sides = f"{statistics.median(ours):.1f} questions/s | the engine driven directly: {statistics.median(against):.1f} questions/s"
        yield f"| serving, two turns, 16 in flight | {sides} | {spread([pair['throughput_ratio'] for pair in pairs])} | >= 0.9 |"
    if seconds := found.get("help_s"):
        yield f"| `stasc --help` | {statistics.median(seconds):.2f} s | | {spread(seconds)} s | < 1 s |"
    if seconds := found.get("first_answers_s"):
        what = "`stasc run` until 8 questions are corrected"
        yield f"| {what} | {statistics.median(seconds):.1f} s | | {spread(seconds)} s | printed |"


def _iteration_rows(found: Mapping[str, Any]) -> Iterator[str]:
    rates = [one["bare"] for one in found["iteration"]]
    for number in (2, 3):
        runs = [one[f"iteration_{number}"] for one in found["iteration"]]
        bare = [
            run["generated_tokens"] / rate["generation"] + run["trained_on_tokens"] / rate["training"]
            for run, rate in zip(runs, rates, strict=True)
        ]
        walls = [run["wall"] for run in runs]
        sides = f"{statistics.median(walls):.0f} s | bare generation and bare training: {statistics.median(bare):.0f} s"
        ratios = [wall / other for wall, other in zip(walls, bare, strict=True)]
        yield f"| iteration {number} of the demo | {sides} | {spread(ratios)} | <= 1.5 |"
    walls = [one["iteration_2"]["wall"] for one in found["iteration"]]
    reference = [one["reference"]["seconds"] for one in found["iteration"]]
    ratios = [other / wall for wall, other in zip(walls, reference, strict=True)]
    sides = f"{statistics.median(walls):.0f} s | the reference's way: {statistics.median(reference):.0f} s"
    yield f"| iteration 2 of the demo | {sides} | {spread(ratios)} times as fast | >= 3 |"


def where_it_goes(found: Mapping[str, Any]) -> Iterator[str]:
    """Markdown table: the seconds of iterations 2 and 3, and of the reference's way."""
    runs = found["iteration"]
    names = [name for name in runs[0]["iteration_2"] if not name.endswith("tokens")]
    yield "| seconds | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for number in (2, 3):
        values = (statistics.median(run[f"iteration_{number}"][name] for run in runs) for name in names)
        yield f"| iteration {number} | " + " | ".join(f"{value:.1f}" for value in values) + " |"
    yield ""
    parts = {name: statistics.median(run["reference"][name] for run in runs) for name in runs[0]["reference"]}
    told = ", ".join(
        f"{name.removeprefix('reference_').replace('_', ' ')} {value:.0f} s"
        for name, value in parts.items()
        if name != "seconds"
    )
    yield f"The reference's way: {told}."


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}, n = {len(values)})"


def machine() -> str:
    """What the figures were measured on."""
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        processor = next(
            (
                line.partition(": ")[2]
                for line in info.read_text().splitlines()
                if line.startswith("model name")
            ),
            processor,
        )
    versions = ", ".join(
        f"{name} {version}" for name, version in ray_session.versions().items() if name != "stasc-ray"
    )
    return f"{ray_session.cores()} CPU cores ({processor}, shared); {versions}."


def commit() -> str:
    """The last one that changed what is measured; with `+` where it has changes."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", "stasc_ray", "benchmarks", "jobs"]
        return subprocess.run(
            command, cwd=DEMO.parents[2], capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("log", "-1", "--format=%h") + ("+" if git("status", "--porcelain") else "")


def write_between_marks(file: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Replace what lies between the marks."""
    before, _, rest = file.read_text(encoding="utf-8").partition(marks[0])
    _, _, after = rest.partition(marks[1])
    if not after:
        raise ValueError(
            f"{file}: expected the lines {marks[0]!r} and {marks[1]!r}, found at most one of them"
        )
    store.write_atomically(file, f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}")


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """The folder that was asked for, or one that goes away."""
    if given:
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        yield Path(folder)


def main() -> None:
    """Measure what is asked for, print the table."""
    names = [row.__name__ for row in ROWS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pairs", type=int, help="default: 5, with --quick 1")
    parser.add_argument("--folder", type=Path, help="for the work; default: a temporary one")
    parser.add_argument("--results", type=Path, help="JSON file; default: speed.json in the folder")
    parser.add_argument("--write", type=Path, help="Markdown file with the marks, e.g. docs/performance.md")
    arguments = parser.parse_args()
    with work_folder(arguments.folder) as folder:
        results = arguments.results or folder / "speed.json"
        bench = Bench(
            folder, results.resolve(), arguments.quick, arguments.pairs or (1 if arguments.quick else 5)
        )
        failed = []
        for row in (row for row in ROWS if row.__name__ in arguments.rows):
            try:
                row(bench)
            except (
                RuntimeError,
                OSError,
                subprocess.SubprocessError,
            ) as error:  # the other rows are worth having
                failed.append(row.__name__)
                print(f"{row.__name__}: {error}", file=sys.stderr, flush=True)
        lines = [f"{machine()} Commit {bench.found['about']['commit']}.", "", *table(bench.found)]
        if bench.found.get("iteration"):
            lines += ["", *where_it_goes(bench.found)]
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        write_between_marks(arguments.write, text)
    if failed:
        raise SystemExit(f"these rows failed: {', '.join(failed)}")


if __name__ == "__main__":
    functions = {function.__name__: function for function in (ours_generation, ours_training)}
    baselines.called(functions) if sys.argv[1:2] and sys.argv[1] in functions else main()
