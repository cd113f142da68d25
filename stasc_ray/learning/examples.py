"""Algorithm 1, step 3, over files: train traces in, training examples out, one Ray Data task per trace file.

Reads trace Parquet files, writes one file of `store.rows.EXAMPLE_SCHEMA` for each that keeps something. Only
counts reach the driver. Which texts are learnt, and in which conversation, is the recipe's to say.
"""

import collections
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stasc_ray import config
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.recipe import Example, train_plan
from stasc_ray.recipes.selection import TRANSITIONS, choose, keep_probabilities, thin, transition
from stasc_ray.recipes.trace import Text, finals, read_texts, roots
from stasc_ray.store import files
from stasc_ray.store.rows import EXAMPLE_SCHEMA, question_columns, text_columns
from stasc_ray.tasks.matching import word_count

if TYPE_CHECKING:
    from ray.data import Dataset

READ_ROWS = 1024
LEARNT = ("id", "messages", "rejected", "weight")
"""Columns of an examples file that a fine-tune reads; the last two may lack."""
FIELDS = (
    "turn",
    "sample",
    "parent",
    "writer",
    "text",
    "token_ids",
    "finish_reason",
    "reward",
    "grader_error",
    "answer_start",
    "logprob",
)


@dataclass(frozen=True)
class Selecting:
    """What a task that selects needs to know."""

    settings: config.Config
    iteration: int
    """That learns; its train traces were written by the model before."""

    @property
    def seed(self) -> int:
        """Of the choices of this iteration."""
        return self.settings.seed + self.iteration


def write_examples(
    traces: Sequence[str], folder: Path, settings: config.Config, iteration: int
) -> dict[str, Any]:
    """Select examples from traces.

    Returns:
        kept, questions_with_examples; left_out_truncated, examples that would learn a text that was cut at
        `max_tokens`; attempts, the answers that first answers ended in, and their
        transitions c_to_c, c_to_i, i_to_c, i_to_i; kept_NAME for each class that the recipe names;
        kept_mean_words and dropped_mean_words of the recipe's last answer turn (None: there is none).
    """
    import ray

    job, recipe = Selecting(settings, iteration), recipe_of(settings.algorithm.recipe)
    plan = ray.data.from_items([{"file": file} for file in traces], override_num_blocks=max(len(traces), 1))
    counted = _total(plan.map(functools.partial(_count, job=job)).take_all())
    means = {
        f"{which}_mean_words": words / texts if (texts := counted.pop(f"{which}_texts", 0)) else None
        for which in ("kept", "dropped")
        for words in (counted.pop(f"{which}_words", 0),)
    }
    shares = recipe.shares(settings.algorithm)
    classes = {name: counted.get(f"kept_{_key(name)}", 0) for group in shares for name in group}
    write = functools.partial(
        _write, job=job, probabilities=keep_probabilities(classes, shares), folder=str(folder)
    )
    candidates = dict.fromkeys((name for name in counted if name.startswith("kept_")), 0)
    return counted | candidates | _total(plan.map(write).take_all()) | means


def read_examples(paths: Sequence[str]) -> "Dataset":
    """The rows {id, messages, rejected, weight} of these files.

    Not by `ray.data.read_parquet`, which starts 32 actors to look at footers first: 3 to 13 s on two cores
    (Ray 2.60).
    """
    import ray

    return ray.data.from_items(
        [{"file": path} for path in paths], override_num_blocks=len(paths)
    ).map_batches(
        _read,  # type: ignore[arg-type]
        batch_size=None,
        batch_format="pyarrow",
    )


def _read(batch: pa.Table) -> Iterator[pa.Table]:
    """Columns of the file's own types: a person's messages may be {role, content} alone."""
    for name in batch["file"].to_pylist():
        with files.whole(name), pq.ParquetFile(name) as file:
            if missing := {"id", "messages"} - set(file.schema_arrow.names):
                raise ValueError(
                    f"{name}: expected the columns id and messages, found no "
                    f"{' and no '.join(sorted(missing))}"
                )
            there = [name for name in LEARNT if name in file.schema_arrow.names]
            for rows in file.iter_batches(batch_size=READ_ROWS, columns=there):
                found = [{**row, "id": str(row["id"]), "class": ""} for row in rows.to_pylist()]
                yield pa.Table.from_pylist(found, schema=EXAMPLE_SCHEMA)


def _count(item: Mapping[str, str], job: Selecting) -> dict[str, str]:
    section, answers = job.settings.algorithm, recipe_of(job.settings.algorithm.recipe).answers
    counts: collections.Counter[str] = collections.Counter(
        attempts=0, left_out_truncated=0, **{_key(name): 0 for name in TRANSITIONS}
    )
    for texts, examples, truncated in _selected(item["file"], job):
        pairs = [(root, final) for root in roots(texts) for final in finals(texts, root, answers)]
        counts["attempts"] += len(pairs)
        counts["left_out_truncated"] += truncated
        counts.update(
            _key(transition(root.reward or 0.0, final.reward or 0.0, section.threshold))
            for root, final in pairs
        )
        counts.update(f"kept_{_key(example.kind)}" for example in examples)
        counts.update(_lengths(texts, examples, answers[-1]))
    return {"counts": json.dumps(counts)}


def _lengths(texts: Sequence[Text], examples: Sequence[Example], turn: str) -> dict[str, int]:
    """Texts and words of a turn that are learnt (`kept_`), and of the others (`dropped_`).

    A reward that is easy to please by long texts shows here.
    """
    gained = [example for example in examples if example.weight > 0]
    pieces = [piece for example in gained for one in example.messages for piece in one.get("pieces") or ()]
    learnt = {tuple(piece.get("token_ids") or ()) for piece in pieces if piece["train"]}
    found: collections.Counter[str] = collections.Counter()
    for text in texts:
        if text.turn == turn:
            which = "kept" if tuple(text.token_ids) in learnt else "dropped"
            found[f"{which}_texts"] += 1
            found[f"{which}_words"] += word_count(text.answer)
    return found


def _write(
    item: Mapping[str, str], job: Selecting, probabilities: Mapping[str, float], folder: str
) -> dict[str, str]:
    counts: collections.Counter[str] = collections.Counter(kept=0, questions_with_examples=0)
    rows = []
    for _, candidates, _ in _selected(item["file"], job):
        kept = thin(candidates, probabilities, job.seed)
        counts["kept"] += len(kept)
        counts["questions_with_examples"] += bool(kept)
        counts.update(f"kept_{_key(example.kind)}" for example in kept)
        rows += [one.as_row() for one in kept]
    if rows:
        table = pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)
        pq.write_table(table, Path(folder) / Path(item["file"]).name)
    return {"counts": json.dumps(counts)}


def _selected(file: str, job: Selecting) -> Iterator[tuple[list[Text], list[Example], int]]:
    """Of each question its texts, its examples, and how many were left out since a learnt text was cut."""
    recipe = recipe_of(job.settings.algorithm.recipe)
    plan = train_plan(job.settings, job.iteration - 1)
    for row in files.read(file, question_columns(files.names(file)) + text_columns(*FIELDS)).to_pylist():
        texts = read_texts(row)
        if not any(text.grader_error for text in texts):
            # a 0 that stands for "unknown" must not look like one
            chosen = choose(recipe, row, texts, plan, job.seed)
            yield texts, list(chosen.kept), len(chosen.cut)


def _key(name: str) -> str:
    """A class's name in metrics: `i->c` is i_to_c."""
    return name.replace("->", "_to_").replace(" ", "_")


def _total(rows: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Sums per key."""
    counts: collections.Counter[str] = collections.Counter()
    for row in rows:
        counts.update(json.loads(row["counts"]))
    return dict(counts)
