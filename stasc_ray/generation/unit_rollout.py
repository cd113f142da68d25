"""One engine's part of a pass: a unit's questions to traces, by the recipe's turns.

It knows an engine only as a function `generate`, and moves no files but the mark that a unit was begun.
"""

import asyncio
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from stasc_ray import config, store
from stasc_ray.generation.asking import Asker, Generate, OnPiece, empty
from stasc_ray.generation.samples import Request, Sample
from stasc_ray.generation.unit_files import Row, from_one_row
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.policies import answer, policy
from stasc_ray.recipes.recipe import Plan, gather, plan_for
from stasc_ray.recipes.trace import Text, read_texts, write_texts
from stasc_ray.store.rows import trace_schema
from stasc_ray.tasks.chat import Chat


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


class UnitRollout:
    """Answers units of one pass on one engine. Several at once, so the engine never waits.

    Args:
        generate: the engine.
        node: that it runs on, for the record.
    """

    def __init__(self, job: Job, chat: Chat, generate: Generate, node: str) -> None:
        self.job, self.chat, self.node = job, chat, node
        self.recipe = recipe_of(job.settings.algorithm.recipe)
        self.done: Counter[str] = Counter()
        """questions, texts and tokens so far, those of unfinished units too."""
        self._generate = generate

    async def unit(self, batch: pa.Table) -> pa.Table:
        """Traces of one unit (`as_one_row`), ungraded."""
        table = from_one_row(batch)
        if self.job.lease:
            self.job.lease.check()
        (Path(self.job.destination) / f".{table['unit'][0]}.{uuid.uuid4().hex}.begun").touch()
        rows = await asyncio.gather(*(self.row(row) for row in table.to_pylist()))
        questions = pa.schema([field for field in table.schema if field.name not in ("texts", "unit")])
        beside = [("unit", pa.string()), ("engine_node", pa.string())]
        return pa.Table.from_pylist(rows, schema=pa.schema([*trace_schema(questions), *beside]))

    async def row(self, row: Row) -> Row:
        """The trace of one question.

        With Fixed initialization M0's answers are corrected and, off train, the model's own too.
        If one of the two trees fails, the other stays.
        """
        fixed = self.job.settings.algorithm.initial_answers_from == "base" and self.job.iteration > 0
        given = read_texts(row)
        trees = [self.tree(row, "base", given)] if fixed else []
        if not fixed or row["split"] != "train":
            trees.append(self.tree(row, "current", None))
        found = await gather(trees)
        texts = [text for tree, _ in found for text in tree]
        errors = [*filter(None, [error for _, error in found]), *filter(None, [empty(texts)])]
        row = row | {"texts": write_texts(texts), "error": "; ".join(errors) or None}
        self.done["questions"] += 1
        return row | {"engine_node": self.node}

    async def tree(self, row: Row, source: str, given: list[Text] | None) -> tuple[list[Text], str | None]:
        """The texts that go back to M0's answers (`base`) or to the model's own; or why there are none."""
        job = self.job
        name = "recipe" if row["split"] == "train" else job.settings.evaluation.policy
        ask = Asker(
            self.chat,
            self._count,
            sampling=job.sampling(row["split"]),
            identity=(job.settings.seed, job.writer, row["id"], source),
            writer=job.writer,
            max_prompt_tokens=job.settings.engine.max_model_len_tokens - 1,
            given=given or (),
        )
        ask.scores = policy(name, self.recipe).scores
        try:
            if given == []:
                raise ValueError("no initial answer was given to correct")
            await answer(name, self.recipe, row, ask, job.plan(row["split"]), given)
        except _row_errors() as error:  # one bad row is data; the rest go on
            return [], f"{type(error).__name__}: {error}"
        return ask.texts, None

    async def _count(self, token_ids: list[int], request: Request, on_piece: OnPiece | None) -> list[Sample]:
        samples = await self._generate(token_ids, request, on_piece)
        self.done["texts"] += len(samples)
        self.done["tokens"] += sum(len(sample.token_ids) for sample in samples)
        return samples


def _row_errors() -> tuple[type[Exception], ...]:
    """What a question's own text can cause: refused prompts, templates that raise, values of a wrong type."""
    from jinja2 import TemplateError

    return (ValueError, TypeError, LookupError, TemplateError)
