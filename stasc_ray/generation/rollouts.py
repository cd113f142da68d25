"""Questions to traces: a recipe's turns, by Ray Data over a pool of actors, one vLLM engine each.

Work comes in units (unit_files.py): one row group of a questions file, or one of M0's trace files if its
answers are given. The driver sees one line per unit, never a question.

    read (CPU tasks) -> ask (engine actors) -> grade and write (CPU tasks) -> one summary line per unit
"""

import asyncio
import collections
import functools
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from stasc_ray import config, store
from stasc_ray.generation import engine
from stasc_ray.generation.asking import Asker, empty
from stasc_ray.generation.samples import Request, Sample
from stasc_ray.generation.unit_files import Row, Unit, from_one_row, read_unit, written
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.policies import answer
from stasc_ray.recipes.recipe import Plan, gather, plan_for
from stasc_ray.recipes.trace import Text, grade, read_texts, write_texts
from stasc_ray.runtime import capacity, model_folder, ray_session
from stasc_ray.store import files
from stasc_ray.store.rows import text_columns, trace_schema
from stasc_ray.tasks import rewards
from stasc_ray.tasks.chat import Chat

if TYPE_CHECKING:
    import ray

MAX_RESTARTS = 10
"""How often one actor of the pool is started anew before the pass fails; without a limit an engine that
always dies never ends."""


@dataclass(frozen=True)
class Job:
    """What one pass of rollouts needs to know; sent to every worker, so small and picklable."""

    model: str
    """Path or Hub id."""
    iteration: int
    """Of the model; 0 is M0."""
    settings: config.Config
    destination: str
    on_cuda: bool
    lease: store.Lease | None = None
    """Of the run that the traces belong to."""

    @property
    def writer(self) -> str:
        """The model's name in traces."""
        return store.iteration_name(self.iteration)

    def plan(self, split: str) -> Plan:
        """What is asked about the questions of a split."""
        return plan_for(self.settings, self.iteration, split)

    def sampling(self, split: str) -> config.SamplingPerTurn:
        """Sampling values for the questions of a split."""
        sampling = self.settings.sampling
        if split == "train" or not self.settings.evaluation.greedy:
            return sampling
        greedy = {"temperature": 0.0}
        return config.SamplingPerTurn(
            initial=sampling.initial.model_copy(update=greedy),
            correction=sampling.correction.model_copy(update=greedy),
        )


def roll_out(job: Job, units: Sequence[Unit]) -> Iterator[Row]:
    """Run the units that have no file yet; yield one summary per unit as its file is written.

    A summary holds `unit, questions, errors, grader_errors, prompt_tokens, tokens (JSON: generated, by turn),
    engine_start_s, engine_node, messages` (up to three error texts).

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
    """The Ray Data plan behind `roll_out`; `actor` takes the place of RolloutActor
    (benchmarks/simulate_scale.py).
    """
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
            # a unit; Ray Data asks for a number where GPUs are reserved, and would join units that have fewer
            # rows
            batch_size=1,
            batch_format="pyarrow",
            max_restarts=MAX_RESTARTS,
            max_task_retries=-1,
            num_cpus=settings.cpus_per_actor,
            num_gpus=capacity.reserved_gpus(settings, job.on_cuda),
        )
        .map_batches(functools.partial(grade_and_write, job=job), batch_size=None, batch_format="pyarrow")
    )


class RolloutActor:
    """Holds one engine; a call takes the rows of one unit. Several calls run at once, so the engine never
    waits.
    """

    def __init__(self, job: Job) -> None:
        import ray

        self.job = job
        self.recipe = recipe_of(job.settings.algorithm.recipe)
        if not Path(job.destination).is_dir():
            # this node may have come after the run had looked at all there were
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
        self.chat = Chat.of(self.engine.tokenizer, settings)
        self.engine_start_s = time.monotonic() - started
        self.node = ray.get_runtime_context().get_node_id()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Traces of one unit (`as_one_row`), ungraded."""
        table = from_one_row(batch)
        if self.job.lease:
            self.job.lease.check()
        (Path(self.job.destination) / f".{table['unit'][0]}.{uuid.uuid4().hex}.begun").touch()
        try:
            rows = asyncio.run(self._roll_out_all(table.to_pylist()))
        except RuntimeError:
            if not self.engine.alive:
                # vLLM can't be mended in place. If this process ends, Ray starts the actor again and repeats
                # its units.
                os._exit(1)
            raise
        questions = pa.schema([field for field in table.schema if field.name not in ("texts", "unit")])
        beside = [("unit", pa.string()), ("engine_start_s", pa.float64()), ("engine_node", pa.string())]
        return pa.Table.from_pylist(rows, schema=pa.schema([*trace_schema(questions), *beside]))

    async def _roll_out_all(self, rows: list[Row]) -> list[Row]:
        return await asyncio.gather(*(self._roll_out(row) for row in rows))

    async def _roll_out(self, row: Row) -> Row:
        """The trace of one question.

        With Fixed initialization M0's answers are corrected and, off train, the model's own too.
        If one of the two trees fails, the other stays.
        """
        fixed = self.job.settings.algorithm.initial_answers_from == "base" and self.job.iteration > 0
        given = read_texts(row)
        trees = [self._tree(row, "base", given)] if fixed else []
        if not fixed or row["split"] != "train":
            trees.append(self._tree(row, "current", None))
        found = await gather(trees)
        texts = [text for tree, _ in found for text in tree]
        errors = [*filter(None, [error for _, error in found]), *filter(None, [empty(texts)])]
        row = row | {"texts": write_texts(texts), "error": "; ".join(errors) or None}
        return row | {"engine_start_s": self.engine_start_s, "engine_node": self.node}

    async def _tree(self, row: Row, source: str, given: list[Text] | None) -> tuple[list[Text], str | None]:
        """The texts that go back to M0's answers (`base`) or to the model's own; or why there are none."""
        job = self.job
        ask = Asker(
            self.chat,
            self.generate,
            sampling=job.sampling(row["split"]),
            identity=(job.settings.seed, job.writer, row["id"], source),
            writer=job.writer,
            max_prompt_tokens=job.settings.engine.max_model_len_tokens - 1,
            given=given or (),
        )
        name = None if row["split"] == "train" else job.settings.evaluation.policy
        try:
            if given == []:
                raise ValueError("no initial answer was given to correct")
            await answer(name, self.recipe, row, ask, job.plan(row["split"]), given)
        except _row_errors() as error:  # one bad row is data; the rest go on
            return [], f"{type(error).__name__}: {error}"
        return ask.texts, None

    def generate(self, token_ids: list[int], request: Request, _: object) -> "asyncio.Future[list[Sample]]":
        """The samples of one prompt."""
        return asyncio.wrap_future(self.engine.submit(token_ids, request))


def grade_and_write(batch: pa.Table, job: Job) -> pa.Table:
    """Grade one unit's traces, write its file, return its summary line."""
    rows = batch.to_pylist()
    (name,) = {row["unit"] for row in rows}
    reward = _grader(job.settings.reward.model_dump_json(), job.settings.prompts.answer_marker)
    for row in rows:
        _grade(row, reward, job.settings.algorithm)
    summary = summarize(rows, job.writer)
    summary |= {key: rows[0][key] for key in ("unit", "engine_start_s", "engine_node")}
    schema = pa.schema(
        [field for field in batch.schema if field.name not in ("unit", "engine_start_s", "engine_node")]
    )
    partial = Path(job.destination) / f".{name}.{uuid.uuid4().hex}.partial"
    if job.lease:
        job.lease.check()
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)
        if job.lease:
            job.lease.check()
        partial.replace(partial.with_name(f"{name}.parquet"))
    finally:
        partial.unlink(missing_ok=True)
    return pa.Table.from_pylist([summary])


def summarize(rows: Sequence[Row], writer: str) -> Row:
    """Counts over traces: questions, errors, graded texts, grader errors; tokens, texts and texts that were
    cut of this pass, by turn; and up to three texts of both kinds of error.
    """
    failures = [row["error"] for row in rows if row["error"]]
    grader_errors = [text["grader_error"] for row in rows for text in row["texts"] if text["grader_error"]]
    own = [text for row in rows for text in row["texts"] if text["writer"] == writer]
    tokens: collections.Counter[str] = collections.Counter()
    texts: collections.Counter[str] = collections.Counter()
    cut: collections.Counter[str] = collections.Counter()
    for text in own:
        tokens[text["turn"]] += len(text["token_ids"])
        texts[text["turn"]] += 1
        cut[text["turn"]] += text["finish_reason"] == "length"
    return {
        "questions": len(rows),
        "errors": len(failures),
        "grader_errors": len(grader_errors),
        "graded": sum(text["reward"] is not None for row in rows for text in row["texts"]),
        "grader_messages": grader_errors[:3] or [""],
        "prompt_tokens": sum(text["prompt_tokens"] for text in own),
        # maps whose keys are the recipe's turns
        "tokens": json.dumps(tokens),
        "texts": json.dumps(texts),
        "truncated": json.dumps(cut),
        "messages": failures[:3] or [""],  # an empty list would have no Arrow type
    }


def done_again(destination: Path, units: Sequence[Unit]) -> int:
    """How often an engine had begun a unit that another one, or a later attempt of the run, then did; forgets
    it.
    """
    begun = list(destination.glob(".*.begun"))
    for mark in begun:
        mark.unlink(missing_ok=True)
    return max(0, len(begun) - len(units))


def read_summary(file: Path, writer: str) -> Row:
    """`summarize` of a file that an earlier attempt wrote."""
    columns = ("turn", "writer", "token_ids", "prompt_tokens", "reward", "grader_error", "finish_reason")
    return summarize(files.read(file, ["error", *text_columns(*columns)]).to_pylist(), writer)


def _grade(row: Row, reward: rewards.Grader, section: config.Algorithm) -> None:
    recipe, texts = recipe_of(section.recipe), read_texts(row)
    says_right = functools.partial(recipe.says_right, section)
    grade(
        texts, recipe.answers, lambda text: reward(text, row), recipe.verdicts, says_right, section.threshold
    )
    row["texts"] = write_texts(texts)


@functools.lru_cache(maxsize=1)
def _grader(reward: str, answer_marker: str) -> rewards.Grader:
    """One grader per worker process: the math grader's child is not started again for every unit."""
    return rewards.grader(config.Reward.model_validate_json(reward), answer_marker)


def _row_errors() -> tuple[type[Exception], ...]:
    """What a question's own text can cause: refused prompts, templates that raise, values of a wrong type."""
    from jinja2 import TemplateError

    return (ValueError, TypeError, LookupError, TemplateError)
