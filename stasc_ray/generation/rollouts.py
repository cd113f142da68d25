"""Questions to traces: a recipe's turns, by Ray Data over the run's engines.

Work comes in units (unit_files.py): one row group of a questions file, or one of M0's trace files if its
answers are given. The driver sees one line per unit, never a question.

    read (CPU tasks) -> ask (the pool's engines) -> grade and write (CPU tasks) -> one summary line per unit
"""

import collections
import functools
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stasc_ray import config
from stasc_ray.generation.run_engines import Engines
from stasc_ray.generation.unit_files import Row, Unit, read_unit, written
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.trace import grade, read_texts, write_texts
from stasc_ray.runtime import capacity, ray_session
from stasc_ray.store import files
from stasc_ray.store.rows import text_columns
from stasc_ray.tasks import rewards

if TYPE_CHECKING:
    import ray

MAX_POOL_RESTARTS = 3
"""How often a pass goes on with another pool of engines."""
UNITS_PER_CLIENT = 64
"""Units that one client, a process without a CPU of its own, waits for at once."""


def roll_out(job: Job, units: Sequence[Unit], engines: Engines) -> Iterator[Row]:
    """Run the units that have no file yet; yield one summary per unit as its file is written.

    A summary holds `unit, questions, errors, grader_errors, prompt_tokens, tokens (JSON: generated, by turn),
    engine_node, messages` (up to three error texts).

    Raises:
        RuntimeError, ray.exceptions.RayError: the engines cannot start, or keep dying.
    """
    from ray.exceptions import RayError

    destination = Path(job.destination)
    destination.mkdir(parents=True, exist_ok=True)
    for partial in destination.glob(".*.partial"):
        partial.unlink(missing_ok=True)
    missing = _missing(destination, units)
    for last_attempt in (*[False] * MAX_POOL_RESTARTS, True):
        if not missing:
            return
        told: set[str] = set()
        try:
            engines.begin(job, len(missing))
            for summary in pipeline(job, missing, engines.pool).iter_rows():
                told.add(summary["unit"])
                yield summary
            return
        except RayError:
            if last_attempt or engines.alive():
                raise
        # The pool's process is gone, and its engines with it: a new one does what is left.
        left = _missing(destination, missing)
        for unit in missing:
            if unit not in left and unit.name not in told:
                yield read_summary(destination / f"{unit.name}.parquet", job.writer) | {"unit": unit.name}
        missing = left


def _missing(destination: Path, units: Sequence[Unit]) -> list[Unit]:
    done = set(written(destination, units))
    return [unit for unit in units if unit not in done]


def pipeline(job: Job, units: Sequence[Unit], pool: Any) -> "ray.data.Dataset":
    """The Ray Data plan behind `roll_out`; `pool` has begun the pass."""
    import ray

    settings = job.settings.engine
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = -1  # one long generation is no failure
    context.target_max_block_size = None  # a unit stays one block, hence one file, however long its texts
    work = [vars(unit) for unit in units]
    _, most = capacity.pool_size(settings, ray_session.nodes(), job.on_cuda)
    in_flight = min(most * settings.concurrent_batches, len(units))
    clients = math.ceil(in_flight / UNITS_PER_CLIENT)
    each = math.ceil(in_flight / clients)
    return (
        ray.data.from_items(work, override_num_blocks=len(work))
        .map_batches(read_unit, batch_size=None, batch_format="pyarrow")
        .map_batches(
            Client,
            fn_constructor_args=(pool,),
            compute=ray.data.ActorPoolStrategy(
                size=clients,
                max_tasks_in_flight_per_actor=2 * each,
                max_concurrent_calls_per_actor=each,
                enable_true_multi_threading=True,
            ),
            batch_size=None,
            batch_format="pyarrow",
            max_restarts=-1,
            max_task_retries=-1,
            num_cpus=0,
        )
        .map_batches(functools.partial(grade_and_write, job=job), batch_size=None, batch_format="pyarrow")
    )


class Client:
    """Sends units to the pool of engines and waits for their traces."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Traces of one unit, ungraded."""
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(self._pool.roll_out.remote(unit))
        except RayTaskError as error:  # one layer of Ray's is enough
            raise (error.cause or error) from None


def grade_and_write(batch: pa.Table, job: Job) -> pa.Table:
    """Grade one unit's traces, write its file, return its summary line."""
    rows = batch.to_pylist()
    (name,) = {row["unit"] for row in rows}
    reward = _grader(job.settings.reward.model_dump_json(), job.settings.prompts.answer_marker)
    for row in rows:
        _grade(row, reward, job.settings.algorithm)
    summary = summarize(rows, job.writer)
    summary |= {key: rows[0][key] for key in ("unit", "engine_node")}
    schema = pa.schema([field for field in batch.schema if field.name not in ("unit", "engine_node")])
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


def done_again(destination: Path) -> int:
    """How often an engine had begun a unit that another one, or a later attempt of the run, then did; forgets
    it.
    """
    begun = list(destination.glob(".*.begun"))
    for mark in begun:
        mark.unlink(missing_ok=True)
    return len(begun) - len({mark.name.rsplit(".", 2)[0] for mark in begun})


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
