"""Algorithm 1, step 3, over files: train rollouts in, training examples out, one Ray Data task per rollout file.

Reads rollout Parquet files, writes one examples file {id, messages} for each that keeps something. Only counts reach the driver.
"""

import collections
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stasc_ray import config
from stasc_ray.recipes import selection
from stasc_ray.store import files
from stasc_ray.tasks import prompts

if TYPE_CHECKING:
    from ray.data import Dataset

READ_ROWS = 1024
EXAMPLE_SCHEMA = pa.schema(
    {"id": pa.string(), "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))}
)
"""One example; `id` is question/initial sample/correction sample, and only the last message is trained on."""


def write_examples(
    files: Sequence[str], folder: Path, settings: config.Config, iteration: int
) -> dict[str, Any]:
    """Filter rollouts into examples.

    Returns:
        kept, questions_with_examples; attempts and their transitions c_to_c, c_to_i, i_to_c, i_to_i; kept_c_to_c ... of the kept.
    """
    import ray

    plan = ray.data.from_items([{"file": file} for file in files], override_num_blocks=max(len(files), 1))
    counted = _total(plan.map(functools.partial(_count, settings=settings, iteration=iteration)).take_all())
    share = settings.algorithm.keep_correct_share
    probabilities = (1.0, 1.0)
    if share is not None:
        kept: dict[selection.Transition, int] = {
            name: counted[f"kept_{_key(name)}"] for name in selection.TRANSITIONS
        }
        probabilities = selection.keep_probabilities(kept, share)
    write = functools.partial(
        _write, settings=settings, iteration=iteration, probabilities=probabilities, folder=str(folder)
    )
    written = _total(plan.map(write).take_all())
    return counted | written


def read_examples(files: Sequence[str]) -> "Dataset":
    """The rows {id, messages} of these files.

    Not by `ray.data.read_parquet`, which starts 32 actors to look at footers first: 3 to 13 s on two cores (Ray 2.60).
    """
    import ray

    return ray.data.from_items(
        [{"file": file} for file in files], override_num_blocks=len(files)
    ).map_batches(
        _read,  # type: ignore[arg-type]
        batch_size=None,
        batch_format="pyarrow",
    )


def _read(batch: pa.Table) -> Iterator[pa.Table]:
    for name in batch["file"].to_pylist():
        with files.whole(name), pq.ParquetFile(name) as file:
            if missing := set(EXAMPLE_SCHEMA.names) - set(file.schema_arrow.names):
                raise ValueError(
                    f"{name}: expected the columns id and messages, found no {' and no '.join(sorted(missing))}"
                )
            for rows in file.iter_batches(batch_size=READ_ROWS, columns=EXAMPLE_SCHEMA.names):
                yield pa.Table.from_batches([rows]).cast(EXAMPLE_SCHEMA)


def _count(item: Mapping[str, str], settings: config.Config, iteration: int) -> dict[str, int]:
    algorithm = settings.algorithm
    counts: collections.Counter[str] = collections.Counter(attempts=0)
    for row, kept in _selected(item["file"], settings, iteration):
        attempts = selection.attempts(row, algorithm.pairing)
        counts["attempts"] += len(attempts)
        counts.update(_transitions(attempts, algorithm.threshold, ""))
        counts.update(_transitions(kept, algorithm.threshold, "kept_"))
    return dict(counts)


def _write(
    item: Mapping[str, str],
    settings: config.Config,
    iteration: int,
    probabilities: tuple[float, float],
    folder: str,
) -> dict[str, int]:
    threshold = settings.algorithm.threshold
    counts: collections.Counter[str] = collections.Counter(kept=0, questions_with_examples=0)
    examples = []
    for row, candidates in _selected(item["file"], settings, iteration):
        kept = selection.thin(candidates, probabilities, threshold, settings.seed + iteration)
        counts["kept"] += len(kept)
        counts["questions_with_examples"] += bool(kept)
        counts.update(_transitions(kept, threshold, "kept_"))
        examples += [_example(row, attempt, settings) for attempt in kept]
    if examples:
        pq.write_table(
            pa.Table.from_pylist(examples, schema=EXAMPLE_SCHEMA), Path(folder) / Path(item["file"]).name
        )
    return dict(counts)


def _selected(
    file: str, settings: config.Config, iteration: int
) -> Iterator[tuple[dict[str, Any], list[selection.Attempt]]]:
    for row in files.read(file).to_pylist():
        if row["grader_errors"]:  # a reward of 0 that stands for "unknown" must not look like an improvement
            continue
        yield row, selection.select(row, settings.algorithm, settings.seed + iteration)


def _example(row: Mapping[str, Any], attempt: selection.Attempt, settings: config.Config) -> dict[str, Any]:
    return {
        "id": f"{attempt['id']}/{attempt['initial_sample']}/{attempt['correction_sample']}",
        "messages": prompts.training_messages(
            row, attempt["initial"], attempt["correction"], settings.prompts
        ),
    }


def _transitions(attempts: Sequence[selection.Attempt], threshold: float, prefix: str) -> dict[str, int]:
    return {
        prefix + _key(name): count for name, count in selection.transition_counts(attempts, threshold).items()
    }


def _key(transition: str) -> str:
    return transition.replace("->", "_to_")


def _total(rows: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Sums per key; every file's row has the same keys, since Ray Data fills what one of them lacks with None."""
    return {name: sum(row[name] or 0 for row in rows) for name in (rows[0] if rows else {})}
