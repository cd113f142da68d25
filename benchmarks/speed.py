"""How fast stasc_ray is against the bare engines that it stands on, and against what one would write without
it.

python -m benchmarks.speed                            every row of the demo; about two hours on two cores
python -m benchmarks.speed --quick                    each row once, on little work: does it run at all?
python -m benchmarks.speed --rows training startup    only those
python -m benchmarks.speed --long --model SmolLM2-135M-Instruct.Q4_1.gguf --questions xquad_en.jsonl
                                                      the rows with a real model; about five hours
python -m benchmarks.speed --write docs/performance.md --readme README.md    puts the table between the marks

Both sides of a row run in turn, each in a process of its own (baselines.py and fresh_processes.py have the
other sides), and take turns at being first. A row's ratio is the median over its pairs, with the smallest and
the largest beside it. Results are kept in `--results` as they come, side by side; what is found there is not
measured again. speed_table.py makes the tables.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import baselines, speed_table
from benchmarks.baselines import Work
from benchmarks.speed_table import commit, machine, write_between_marks
from benchmarks.whole_runs import DEMO, ROOT, SMOLLM2, checkout, published, run_s, stage_seconds
from stasc_ray import config, stages, store
from stasc_ray.generation import rollouts, run_engines, unit_files
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.learning import packing, train_loop
from stasc_ray.recipes import section_of, trace
from stasc_ray.recipes.recipe import written
from stasc_ray.runtime import capacity, gguf, ray_session
from stasc_ray.store import step_log
from stasc_ray.tasks import prompts, questions
from stasc_ray.tasks.chat import Message

LONG_QUESTIONS = 60
"""Of each split."""
OLD_DEMO = "05a8cae"
"""Before engines outlived an iteration."""


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
        run_engines.engines(settings, work["on_cuda"], training=False) as engines,
    ):
        job = Job(work["model"], 0, settings, str(destination), on_cuda=work["on_cuda"])
        rows = pq.read_table(work["train"]).to_pylist()[: baselines.WARM_UP]
        unit_files.write_questions(rows, warm_up / "train.parquet", math.ceil(len(rows) / 8))
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
    """The fine-tune in Ray Train: its loop's tokens per second, as `stasc run` reports them; and, if the
    device's peak is known, its utilization after the first steps.
    """
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
        lines = step_log.read(Path(job.output) / step_log.NAME)
    figures = {name: found[name] for name in ("tokens_per_s", "train_s", "start_s", "duration_s", "steps")}
    warm = [line["mfu"] for line in lines[train_loop.STEPS_PER_READ :] if line["mfu"]]
    return figures | ({"mfu": statistics.median(warm)} if warm else {})


def ours_hand_over(work: Work) -> dict[str, float]:
    """One engine starts with a model, then takes another one's weights over, which the canary proves."""
    settings = baselines.read_config(work)
    with (
        ray_session.connect(None, Path(work["folder"]) / "logs", worker_niceness=0),
        run_engines.engines(settings, work["on_cuda"], training=False) as engines,
    ):
        job = Job(work["model"], 0, settings, work["folder"], on_cuda=work["on_cuda"])
        engines.begin(job, 1)
        start_s = engines.report().start_s
        engines.begin(replace(job, model=work["next_model"], iteration=1), 1)
        found = engines.report()
    if found.notes or found.reused != 1 or found.canary_difference is None:
        raise RuntimeError(
            f"expected one engine to take the weights over and a canary to agree, found {found}"
        )
    return {"start_s": start_s, "hand_over_s": found.hand_over_s, "canary": found.canary_difference}


# --- what is measured
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """The runs that a table is about."""

    name: str
    file: Path
    """Config of its runs."""
    overrides: Sequence[str]
    start: int
    """The iteration from whose model the other sides of an iteration start."""
    micro_batches: int = 1
    """In how many parts Hugging Face's Trainer takes a step, for the memory of its logits."""

    @property
    def settings(self) -> config.Config:
        """What the file and the overrides say."""
        return config.load_config(self.file, list(self.overrides), section_of)


def demo_case(quick: bool) -> Case:
    """The demo, as it ships."""
    limits = {"train": 50, "dev": 12, "test": 25}
    small = [f"questions.{split}.limit={limit}" for split, limit in limits.items()]
    return Case("demo", DEMO, [*small, "engine.kv_cache_gb=0.25"] if quick else [], start=1)


def smollm2_case(model: Path, source: Path, folder: Path, quick: bool) -> Case:
    """SmolLM2-135M on questions with their paragraphs; two iterations, of which the first is measured."""
    if gguf.is_gguf(str(model)):
        converted = folder / "model"
        if not converted.exists():
            print(gguf.convert(model, converted), flush=True)
        model = converted
    texts = {"model.path": str(model.resolve())}
    for split in questions.SPLITS:
        texts[f"questions.{split}.split"] = split
        texts[f"questions.{split}.source"] = str(source.resolve())
    limits = [f"questions.{split}.limit={4 if quick else LONG_QUESTIONS}" for split in questions.SPLITS]
    values = [*limits, "algorithm.iterations=2", *(f"{name}={text!r}" for name, text in texts.items())]
    if quick:  # a reward that eight tokens may earn
        values += ["sampling.correction.max_tokens=8", "sampling.initial.max_tokens=8", "engine.batch_size=2"]
        values += ["algorithm.keep_truncated=true", "reward.name='benchmarks.gpu_work:by_chance'"]
        values += ["reward.rehearse=false"]  # it pays no right answer
    return Case("SmolLM2-135M", SMOLLM2, values, start=0, micro_batches=4)


class Bench:
    """Where the work lies, what was measured already, and how to measure the rest."""

    def __init__(
        self, case: Case, folder: Path, results: Path, *, quick: bool, pairs: int | None, against: str
    ) -> None:
        self.case, self.folder, self.results, self.quick, self.against = case, folder, results, quick, against
        self.short, self.long = pairs or (1 if quick else 5), pairs or (1 if quick else 3)
        about = {"case": case.name, "quick": quick, "commit": commit(), "against": against}
        about |= ray_session.versions()
        self.settings, self.prepared_run = case.settings, folder / "prepared"
        self.examples = folder / "examples.jsonl"
        self.found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {"about": about}
        if not results.exists():  # what an earlier measurement left was made by other code
            shutil.rmtree(self.prepared_run, ignore_errors=True)
            self.examples.unlink(missing_ok=True)
            store.write_atomically(results, json.dumps(self.found))
        if self.found["about"] != about:
            raise SystemExit(
                f"{results}: expected figures of {about}, found some of {self.found['about']}; move the file "
                f"away"
            )
        self.work = self._work()

    def _work(self) -> Work:
        settings = self.settings
        self.folder.mkdir(parents=True, exist_ok=True)
        work: Work = {
            "config": config.to_json(settings),
            "model": stages.base_model(settings),
            "threads": ray_session.cores(),
            "micro_batches": self.case.micro_batches,
            "capacity": packing.CPU_CAPACITY_TOKENS,  # a GPU would pack
            "folder": str(self.folder),
            "examples": str(self.examples),
            "on_cuda": False,
        }
        rows = questions.load_questions(settings.questions, settings.seed).rows
        for split in questions.SPLITS:
            work[split] = str(self.folder / f"{split}.parquet")
            of_split = [row for row in rows if row["split"] == split]
            unit_files.write_questions(of_split, Path(work[split]), settings.engine.batch_size)
        return work

    def ours(self, name: str, **more: Any) -> dict[str, float]:
        """One of the functions above, in its own process."""
        return baselines.in_process(name, {**self.work, **more}, "benchmarks.speed")

    def theirs(self, name: str, **more: Any) -> dict[str, float]:
        """One of the baselines, in its own process."""
        return baselines.in_process(name, {**self.work, **more})

    def fresh_processes(self, name: str, **more: Any) -> dict[str, float]:
        """An iteration of fresh processes, in a folder that goes away."""
        with tempfile.TemporaryDirectory() as folder:
            work = {**self.work, **more, "folder": folder}
            return baselines.in_process(name, work, "benchmarks.fresh_processes")

    def run_s(self, folder: Path, **more: Any) -> float:
        """Seconds of a run."""
        return run_s(self.case.file, folder, self.case.overrides, **more)

    def with_settings(self, *overrides: str) -> str:
        """The run's config with other values, as work has it."""
        return config.to_json(config.with_overrides(self.settings, list(overrides), section_of))

    def measured(self, row: str, one: Callable[[], Any], times: int) -> None:
        """Measure a row so often."""
        kept = self.found.setdefault(row, [])
        while len(kept) < times:
            kept.append(one())
            self._keep(f"{row} {len(kept)}/{times}", kept[-1])

    def turns(self, row: str, sides: Mapping[str, Callable[[], dict[str, Any]]], times: int) -> None:
        """All sides of a row, one after another, taking turns at being first; each side is kept as it comes."""
        pairs = self.found.setdefault(row, [])
        for number in range(times):
            if number == len(pairs):
                pairs.append({})
            for side in sorted(sides, reverse=number % 2 == 0):
                if side not in pairs[number]:
                    pairs[number][side] = sides[side]()
                    self._keep(f"{row} {number + 1}/{times} {side}", pairs[number][side])

    def _keep(self, what: str, figures: Any) -> None:
        store.write_atomically(self.results, json.dumps(self.found, indent=1))
        print(f"{what}: {json.dumps(figures)}", flush=True)

    # --- what several rows start from ----------------------------------------------------------------------

    def prepared(self) -> store.RunFolder:
        """A run that has a first fine-tuned model, and the examples of the iteration that is measured."""
        run, measured = store.RunFolder(self.prepared_run), self.case.start + 1
        wanted = (run.stage(1, "model"), run.stage(measured, "examples"))

        def there() -> bool:
            return all(map(run.committed, wanted))

        if not there():
            self.run_s(run.path, until=there)
        return run

    def examples_of_iteration(self) -> str:
        """What the measured iteration learns, as the other sides read it."""
        run = self.prepared()
        files = run.files(run.stage(self.case.start + 1, "examples"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        return _write_messages(self.folder / "iteration.jsonl", (row["messages"] for row in rows))

    def start_model(self) -> str:
        """From which the other sides of an iteration start."""
        start = self.case.start
        return str(self.prepared().stage(start, "model")) if start else self.work["model"]

    def write_examples(self) -> None:
        """Training messages of real lengths: two corrections of each question, as the sandbox model wrote
        them; for a larger model, which would need long to write them, the questions' references.
        """
        if not self.examples.exists():
            found = self._corrections() if self.case.name == "demo" else self._references()
            _write_messages(self.examples, found)

    def _corrections(self) -> Iterator[list[Message]]:
        self.ours("ours_generation")
        for file in sorted((self.folder / "rollouts").glob("train-*.parquet")):
            for row in pq.read_table(file).to_pylist():
                found = trace.read_texts(row)
                for answer in trace.roots(found):
                    asked = prompts.correction_messages(row, answer.text, self.settings.prompts)
                    texts = trace.corrections(found, answer)[:2]
                    yield from ([*asked, written(one.text)] for one in texts if one.text.strip())

    def _references(self) -> Iterator[list[Message]]:
        for row in baselines.read_questions(self.work):
            right = row["answers"][0]
            yield [*prompts.correction_messages(row, right, self.settings.prompts), written(right)]


def _write_messages(file: Path, conversations: Iterable[Sequence[Mapping[str, Any]]]) -> str:
    lines = [json.dumps({"messages": list(messages)}) + "\n" for messages in conversations]
    store.write_atomically(file, "".join(lines))
    return str(file)


# --- the rows
# ----------------------------------------------------------------------------------------------------


def generation(bench: Bench) -> None:
    """Two turns through Ray Data, as many engines as the demo has, against one vllm.LLM; beside them, through
    Ray Data with one.
    """
    one_engine = bench.with_settings("engine.actors=1")
    sides = {
        "ours": lambda: bench.ours("ours_generation"),
        "against": lambda: bench.theirs("bare_vllm"),
        "one_engine": lambda: bench.ours("ours_generation", config=one_engine),
    }
    bench.turns("generation", sides, bench.short)


def ray_data_llm(bench: Bench) -> None:
    """The same against chained processors of ray.data.llm."""
    sides = {
        "ours": lambda: bench.ours("ours_generation"),
        "against": lambda: bench.theirs("ray_data_llm"),
    }
    bench.turns("ray_data_llm", sides, bench.short)


def training(bench: Bench) -> None:
    """Ray Train against a bare loop and Hugging Face's Trainer with as many threads; beside them, if that is
    more, the bare loop with a thread on every core.
    """
    bench.write_examples()
    cores = ray_session.cores()
    threads = capacity.trainer_threads(1, cores)
    sides = {
        "ours": lambda: bench.ours("ours_training"),
        "against": lambda: bench.theirs("bare_torch", threads=threads),
        "hf_trainer": lambda: bench.theirs("hf_trainer", threads=threads),
    }
    if threads < cores:
        sides["all_cores"] = lambda: bench.theirs("bare_torch")
    bench.turns("training", sides, bench.short if bench.case.name == "demo" else bench.long)


def iteration(bench: Bench) -> None:
    """A run's iterations, stage by stage; from the same model the bare rates, and an iteration of fresh
    processes as the reference has it and, for the demo, as ms-swift's script.
    """
    start = bench.case.start
    sides = {
        "run": lambda: _measured_run(bench),
        "bare": lambda: _bare_rates(bench),
        "reference": lambda: bench.fresh_processes("reference_whole", model=bench.start_model()),
    }
    if start:
        sides["rft"] = lambda: bench.fresh_processes("rft_whole", model=bench.start_model())
    bench.turns("iteration", sides, bench.long)


def _measured_run(bench: Bench) -> dict[str, Any]:
    """The demo to its end, of which iteration 3 only measures; else until the first iteration is published."""
    demo = bench.case.start == 1
    with tempfile.TemporaryDirectory() as temporary:
        # the first one stays for the other sides, which so need none
        folder = Path(temporary) / "run" if bench.prepared_run.exists() else bench.prepared_run
        bench.run_s(folder, until=None if demo else lambda: published(folder, 1))
        return {f"iteration_{number}": stage_seconds(folder, number) for number in ((2, 3) if demo else (1,))}


def _bare_rates(bench: Bench) -> dict[str, float]:
    generated = bench.theirs("bare_pass", model=bench.start_model())
    trained = bench.theirs("bare_torch", model=bench.start_model(), examples=bench.examples_of_iteration())
    return {
        "generation": generated["tokens_per_s"],
        "generation_rest": generated["rest_tokens_per_s"],
        "training": trained["tokens_per_s"],
    }


def hand_over(bench: Bench) -> None:
    """One engine's exchange of weights against its start, in one process."""
    more = {"next_model": str(bench.prepared().stage(1, "model"))}
    settings = bench.with_settings("engine.actors=1")
    bench.measured("hand_over", lambda: bench.ours("ours_hand_over", config=settings, **more), bench.short)


def serving(bench: Bench) -> None:
    """Corrections over HTTP against the same engine driven directly (benchmarks/serve.py)."""

    def one() -> Any:
        command = [sys.executable, "-m", "benchmarks.serve", "--pairs", "1", "--size", "20M"]
        command += ["--questions", "20" if bench.quick else "100"]
        command += ["--served-first"] if len(bench.found["serving"]) % 2 else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[0])

    bench.measured("serving", one, bench.short)


def demo(bench: Bench) -> None:
    """What `make demo` runs, to its end, from this tree and from an earlier commit's."""

    def whole(tree: Path) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            return {"seconds": bench.run_s(Path(folder) / "demo", tree=tree)}

    with checkout(bench.against) as before:
        if before is None:
            print(f"demo: left out, since git has no commit {bench.against} here", flush=True)
            return
        sides = {"ours": lambda: whole(ROOT), "against": lambda: whole(before)}
        bench.turns("demo", sides, bench.long)


def startup(bench: Bench) -> None:
    """`stasc --help`, and `stasc run` until the first eight questions are answered and corrected."""

    def help_s() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "stasc_ray.cli", "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    def first_answers_s() -> float:
        with tempfile.TemporaryDirectory() as temporary:
            run = Path(temporary) / "run"
            values = [*bench.case.overrides, "engine.batch_size=8"]
            return run_s(bench.case.file, run, values, until=lambda: any(run.glob("base/rollouts/*.parquet")))

    bench.measured("help_s", help_s, bench.short)
    bench.measured("first_answers_s", first_answers_s, bench.long)


ROWS = (generation, ray_data_llm, training, iteration, hand_over, serving, demo, startup)
LONG_ROWS = (training, iteration, hand_over)


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """The folder that was asked for, or one that goes away."""
    if given:
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        yield Path(folder)


def measure(bench: Bench, rows: Sequence[Callable[[Bench], None]]) -> list[str]:
    """Measure these rows; returns the names of those that failed."""
    failed = []
    for row in rows:
        try:
            row(bench)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # others are worth having
            failed.append(row.__name__)
            print(f"{row.__name__}: {error}", file=sys.stderr, flush=True)
    return failed


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ends with a message where it makes no sense."""
    names = [row.__name__ for row in ROWS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pairs", type=int, help="default: 5 of a short row, 3 of a long one; --quick: 1")
    parser.add_argument("--folder", type=Path, help="for the work; default: a temporary one")
    parser.add_argument("--results", type=Path, help="JSON file; default: speed.json in the folder")
    parser.add_argument("--against", default=OLD_DEMO, help="the commit whose demo is run (%(default)s)")
    parser.add_argument("--long", action="store_true", help="the rows with SmolLM2-135M")
    parser.add_argument("--model", type=Path, help="its folder or .gguf file")
    parser.add_argument("--questions", type=Path, help="JSON lines in SQuAD's shape with a column split")
    parser.add_argument("--write", type=Path, help="Markdown file with the marks, e.g. docs/performance.md")
    parser.add_argument("--readme", type=Path, help="the same for the short table")
    found = parser.parse_args(arguments)
    if found.long and not (
        found.model and found.model.exists() and found.questions and found.questions.exists()
    ):
        parser.error(
            f"--long: expected --model and --questions, both there; found {found.model} and {found.questions}"
        )
    pages = [page for page in (found.write, found.readme) if page]
    if found.quick and pages:
        parser.error("--quick: expected no --write and --readme, since its figures mean nothing")
    for page in pages:
        speed_table.check_marks(page, speed_table.marks(found.long))
    return found


def main() -> None:
    """Measure what is asked for, print the table."""
    arguments = read_arguments()
    rows = [row for row in (LONG_ROWS if arguments.long else ROWS) if row.__name__ in arguments.rows]
    with work_folder(arguments.folder) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        quick = arguments.quick
        if arguments.long:
            case = smollm2_case(arguments.model, arguments.questions, folder, quick)
        else:
            case = demo_case(quick)
        results = (arguments.results or folder / "speed.json").resolve()
        bench = Bench(case, folder, results, quick=quick, pairs=arguments.pairs, against=arguments.against)
        failed = measure(bench, rows)
    of_commit = bench.found["about"]["commit"]
    text = speed_table.page(bench.found, f"{machine()} Commit {of_commit}.")
    print(text)
    if arguments.write:
        write_between_marks(arguments.write, text, speed_table.marks(arguments.long))
    if arguments.readme:
        short = speed_table.short_page(bench.found, f"at {of_commit}")
        write_between_marks(arguments.readme, short, speed_table.marks(arguments.long))
    if failed:
        raise SystemExit(f"these rows failed: {', '.join(failed)}")


if __name__ == "__main__":
    functions = {function.__name__: function for function in (ours_generation, ours_training, ours_hand_over)}
    baselines.called(functions) if sys.argv[1:2] and sys.argv[1] in functions else main()
