"""Questions to rollouts: initial answers and their corrections, by Ray Data over a pool of actors, one vLLM engine each.

Work comes in units (unit_files.py): one row group of a questions file, or one earlier rollout file when initial answers are given.
The driver sees one line per unit, never a question.

    read (CPU tasks) -> answer and correct (engine actors) -> grade and write (CPU tasks) -> one summary line per unit
"""

import asyncio
import functools
import os
import time
import uuid
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stasc_ray import config, store
from stasc_ray.generation import engine
from stasc_ray.generation.samples import Request, Sample, request_seed
from stasc_ray.generation.unit_files import ROLLOUT_SCHEMA, Row, Unit, from_one_row, read_unit, written
from stasc_ray.runtime import capacity, model_folder, ray_session
from stasc_ray.store import files
from stasc_ray.tasks import prompts, rewards

if TYPE_CHECKING:
    import ray

MAX_RESTARTS = 10
"""How often one actor of the pool is started anew before the pass fails; without a limit an engine that always dies never ends."""


@dataclass(frozen=True)
class Turns:
    """How many answers a split's questions get, and with which sampling values; no corrections: initial answers alone."""

    n_initial: int
    n_corrections: int
    initial: config.Sampling
    correction: config.Sampling
    chained: bool = False
    """Each correction corrects the one before it (rounds) instead of the initial answer."""


@dataclass(frozen=True)
class Job:
    """What one pass of rollouts needs to know; sent to every worker, so small and picklable."""

    model: str
    model_version: str
    settings: config.Config
    turns: Mapping[str, Turns]
    """By split."""
    destination: str
    on_cuda: bool
    lease: store.Lease | None = None
    """Of the run that the rollouts belong to."""


def roll_out(job: Job, units: Sequence[Unit]) -> Iterator[Row]:
    """Run the units that have no file yet; yield one summary per unit as its file is written.

    A summary holds `unit, questions, errors, grader_errors, initial_tokens, correction_tokens, prompt_tokens, engine_start_s,
    engine_node, messages` (up to three error texts).

    Raises:
        ray.exceptions.RayError: the engines cannot start, or keep dying.
    """
    destination = Path(job.destination)
    destination.mkdir(parents=True, exist_ok=True)
    for partial in destination.glob(".*.partial"):
        partial.unlink(missing_ok=True)
    done = set(written(destination, units))
    missing = [unit for unit in units if unit not in done]
    if missing:
        yield from pipeline(job, missing).iter_rows()


def pipeline(
    job: Job, units: Sequence[Unit], actor: "type[RolloutActor] | None" = None
) -> "ray.data.Dataset":
    """The Ray Data plan behind `roll_out`; `actor` takes the place of RolloutActor (benchmarks/simulate_scale.py)."""
    import ray

    settings = job.settings.engine
    context = ray.data.DataContext.get_current()
    context.wait_for_min_actors_s = int(settings.start_timeout_s)
    context.execution_no_progress_timeout_s = -1  # one long generation is no failure
    context.target_max_block_size = None  # a unit stays one block, hence one file, however long its texts
    work = [vars(unit) for unit in units]
    least, most = capacity.pool_size(settings, ray_session.nodes(), job.on_cuda)
    pool = ray.data.ActorPoolStrategy(
        min_size=min(least, len(units)),
        max_size=min(most, len(units)),
        max_tasks_in_flight_per_actor=2 * settings.concurrent_batches,
        max_concurrent_calls_per_actor=settings.concurrent_batches,
        enable_true_multi_threading=True,
    )
    return (
        ray.data.from_items(work, override_num_blocks=len(work))
        .map_batches(read_unit, batch_size=None, batch_format="pyarrow")
        .map_batches(
            actor or RolloutActor,
            fn_constructor_args=(job,),
            compute=pool,
            batch_size=1,  # a unit; Ray Data asks for a number where GPUs are reserved, and would join units that have fewer rows
            batch_format="pyarrow",
            max_restarts=MAX_RESTARTS,
            max_task_retries=-1,
            num_cpus=settings.cpus_per_actor,
            num_gpus=capacity.reserved_gpus(settings, job.on_cuda),
        )
        .map_batches(functools.partial(grade_and_write, job=job), batch_size=None, batch_format="pyarrow")
    )


class RolloutActor:
    """Holds one engine; a call takes the rows of one unit. Several calls run at once, so the engine never waits for the next."""

    def __init__(self, job: Job) -> None:
        import ray

        self.job = job
        if not Path(
            job.destination
        ).is_dir():  # this node may have come after the run had looked at all there were
            raise FileNotFoundError(
                f"storage: expected a folder that every node sees, this one does not see {job.destination}"
            )
        started = time.monotonic()
        settings = job.settings
        self.engine = engine.Engine(
            job.model,
            settings.engine,
            on_cuda=job.on_cuda,
            revision=model_folder.revision(job.model, settings.model),
            trust_remote_code=settings.model.trust_remote_code,
            threads=capacity.rollout_threads(settings.engine, ray_session.cores()),
            seed=settings.seed,
        )
        self.engine_start_s = time.monotonic() - started
        self.node = ray.get_runtime_context().get_node_id()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rollouts of one unit (`as_one_row`), ungraded."""
        table = from_one_row(batch)
        if self.job.lease:
            self.job.lease.check()
        (Path(self.job.destination) / f".{table['unit'][0]}.{uuid.uuid4().hex}.begun").touch()
        try:
            rows = asyncio.run(self._roll_out_all(table.to_pylist()))
        except RuntimeError:
            if not self.engine.alive:
                # vLLM cannot be mended in place. The end of this process lets Ray start the actor anew and run its units again.
                os._exit(1)
            raise
        beside = [("unit", pa.string()), ("engine_start_s", pa.float64()), ("engine_node", pa.string())]
        schema = pa.schema([*ROLLOUT_SCHEMA, *beside])
        return pa.Table.from_pylist(rows, schema=schema)

    async def _roll_out_all(self, rows: list[Row]) -> list[Row]:
        return await asyncio.gather(*(self._roll_out(row) for row in rows))

    async def _roll_out(self, row: Row) -> Row:
        rollout = {
            **row,
            "model_version": self.job.model_version,
            "prompt_tokens": 0,
            "engine_start_s": self.engine_start_s,
            "engine_node": self.node,
            "initial_rewards": [],
            "correction_rewards": [],
            "grader_errors": [],
        }
        try:
            await self._fill_in(rollout)
        except _row_errors() as error:  # one bad row is data; the rest go on
            nothing = {name: [] for name in ("initial", "initial_finish", "initial_tokens")}
            rollout |= nothing | {
                name: [] for name in ("corrections", "correction_finish", "correction_tokens")
            }
            rollout["error"] = f"{type(error).__name__}: {error}"
        return rollout

    async def _fill_in(self, rollout: Row) -> None:
        """Add the initial answers (unless given) and their corrections to a row."""
        turns, texts = self.job.turns[rollout["split"]], self.job.settings.prompts
        if rollout.get("initial") is None:
            messages = prompts.initial_messages(rollout, texts)
            samples = await self._sample(rollout, messages, turns.initial, turns.n_initial, "initial")
            rollout["initial"] = [sample.text for sample in samples]
            rollout["initial_finish"] = [sample.finish_reason for sample in samples]
            rollout["initial_tokens"] = [len(sample.token_ids) for sample in samples]
        if not rollout["initial"]:
            raise ValueError("no initial answer was given to correct")
        correct = self._correct_in_rounds if turns.chained else self._correct
        corrected = await asyncio.gather(
            *(correct(rollout, turns, i) for i in range(len(rollout["initial"])))
        )
        rollout["corrections"] = [[sample.text for sample in samples] for samples in corrected]
        rollout["correction_finish"] = [[sample.finish_reason for sample in samples] for samples in corrected]
        rollout["correction_tokens"] = [
            [len(sample.token_ids) for sample in samples] for samples in corrected
        ]
        empty = sum(
            not text.strip() for texts in (rollout["initial"], *rollout["corrections"]) for text in texts
        )
        rollout["error"] = f"empty generation: {empty} of this question's answers" if empty else None

    def _correct(self, rollout: Row, turns: Turns, index: int) -> "Coroutine[Any, Any, list[Sample]]":
        """N_corr independent corrections of one initial answer."""
        messages = prompts.correction_messages(rollout, rollout["initial"][index], self.job.settings.prompts)
        return self._sample(rollout, messages, turns.correction, turns.n_corrections, f"correction/{index}")

    async def _correct_in_rounds(self, rollout: Row, turns: Turns, index: int) -> list[Sample]:
        """N_corr rounds: each corrects the answer of the one before."""
        answer, samples = rollout["initial"][index], []
        for number in range(turns.n_corrections):
            messages = prompts.correction_messages(rollout, answer, self.job.settings.prompts)
            samples += await self._sample(
                rollout, messages, turns.correction, 1, f"correction/{index}/round/{number}"
            )
            answer = samples[-1].text
        return samples

    async def _sample(
        self, rollout: Row, messages: list[dict[str, str]], sampling: config.Sampling, n: int, turn: str
    ) -> list[Sample]:
        if not n:  # a pass of initial answers alone
            return []
        token_ids = prompts.render(self.engine.tokenizer, messages, add_generation_prompt=True)
        rollout["prompt_tokens"] += len(token_ids)
        identity = (
            self.job.settings.seed,
            self.job.model_version,
            rollout["id"],
            rollout["initial_from"],
            turn,
        )
        # Greedy answers are all the same: one is generated and stands for all.
        request = Request(sampling, n if sampling.temperature > 0 else 1, request_seed(*identity))
        samples = await asyncio.wrap_future(self.engine.submit(token_ids, request))
        return samples * (n // request.n)


def grade_and_write(batch: pa.Table, job: Job) -> pa.Table:
    """Grade one unit's rollouts, write its file, return its summary line."""
    rows = batch.to_pylist()
    (name,) = {row["unit"] for row in rows}
    grade = _grader(job.settings.reward.model_dump_json(), job.settings.prompts.answer_marker)
    for row in rows:
        _grade(row, grade)
    summary = summarize(rows) | {key: rows[0][key] for key in ("unit", "engine_start_s", "engine_node")}
    partial = Path(job.destination) / f".{name}.{uuid.uuid4().hex}.partial"
    if job.lease:
        job.lease.check()
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA), partial)
        if job.lease:
            job.lease.check()
        partial.replace(partial.with_name(f"{name}.parquet"))
    finally:
        partial.unlink(missing_ok=True)
    return pa.Table.from_pylist([summary])


def summarize(rows: Sequence[Row]) -> Row:
    """Counts over rollout rows: questions, errors, grader errors, tokens, and up to three error texts."""
    failures = [row["error"] for row in rows if row["error"]]
    return {
        "questions": len(rows),
        "errors": len(failures),
        "grader_errors": sum(len(row["grader_errors"]) for row in rows),
        "initial_tokens": sum(sum(row["initial_tokens"]) for row in rows if row["initial_from"] == "current"),
        "correction_tokens": sum(sum(map(sum, row["correction_tokens"])) for row in rows),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "messages": failures[:3] or [""],  # an empty list would have no Arrow type
    }


def done_again(destination: Path, units: Sequence[Unit]) -> int:
    """How often an engine had begun a unit that another one, or a later attempt of the run, then did; forgets it."""
    begun = list(destination.glob(".*.begun"))
    for mark in begun:
        mark.unlink(missing_ok=True)
    return max(0, len(begun) - len(units))


def read_summary(file: Path) -> Row:
    """`summarize` of a file that an earlier attempt wrote."""
    columns = [
        "initial_from",
        "error",
        "grader_errors",
        "initial_tokens",
        "correction_tokens",
        "prompt_tokens",
    ]
    return summarize(files.read(file, columns).to_pylist())


def _grade(row: Row, grade: rewards.Grader) -> None:
    def graded(answer: str) -> float:
        value, error = grade(answer, row)
        if error is not None:
            row["grader_errors"].append(error)
        return value

    row["initial_rewards"] = [graded(answer) for answer in row["initial"]]
    row["correction_rewards"] = [[graded(answer) for answer in answers] for answers in row["corrections"]]


@functools.lru_cache(maxsize=1)
def _grader(reward: str, answer_marker: str) -> rewards.Grader:
    """One grader per worker process: the math grader's child is not started again for every unit."""
    return rewards.grader(config.Reward.model_validate_json(reward), answer_marker)


def _row_errors() -> tuple[type[Exception], ...]:
    """What a question's own text can cause: refused prompts, templates that raise, values of a wrong type."""
    from jinja2 import TemplateError

    return (ValueError, TypeError, LookupError, TemplateError)
