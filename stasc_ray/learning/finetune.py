"""One iteration's fine-tune: Ray Train's workers start, Ray Data encodes the examples, the workers train.

Reads a Dataset of Example rows {id, messages} (and rejected, weight) and a base model (Hugging Face folder or
Hub id).
Writes a Hugging Face folder (`output`, with the steps' training.jsonl) and Ray Train's own state (`storage`),
from which a second call resumes. The workers are in trainer.py, their loop in train_loop.py, the export in
export.py.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from stasc_ray import config
from stasc_ray.learning import encoding, objectives
from stasc_ray.learning.job import FinetuneJob
from stasc_ray.learning.trainer import Trainer
from stasc_ray.tasks.chat import Chat

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

ENCODE_ROWS = 256
COUNTED = ("trained_tokens", "no_target", "too_long")


def finetune(
    examples: "Dataset",
    job: FinetuneJob,
    trainer: Trainer | None = None,
    model_card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune a model on examples (Algorithm 1, step 4; arXiv 2503.08681, section 2.2).

    The order of the examples follows from (seed, iteration, epoch, id) alone, and a step covers the same
    `batch_size` examples for any number of workers, so the loss curve depends on neither workers nor blocks
    (with `lora.dropout` each worker draws its own masks).
    A call with the `storage` of an interrupted one continues from its last checkpoint; the caller deletes
    `storage` once `output` is committed.

    Args:
        examples: rows {id, messages} and, for objectives that learn them, `rejected` or `weight`; ids are
            unique.
        job: what to train, from what, and where to.
        trainer: that may have started this job's workers; else they start when the examples are ready.
        model_card: metrics and facts for the exported README.md.

    Returns:
        loss_first, loss_last (nats per trained token; of `dpo` per pair), losses (per step), steps,
        trained_tokens, tokens_per_s (all tokens through the model), train_s, duration_s, start_s, workers (at
        the end), resumed_from_step, packing_note (why examples are not packed, if CUDA and the config would),
        left_out_no_target, left_out_too_long.

    Raises:
        ValueError: no example can be trained on, one does not fit the objective, or `storage` belongs to
            another fine-tune.
        FloatingPointError: the loss became NaN or infinite.
        RuntimeError: the workers failed more often than `finetune.max_failures` allows.
    """
    started = time.time()
    encoded = encode_examples(examples, job)
    counts = _count(encoded, job.finetune.max_length_tokens)
    training = (trainer or Trainer()).take(job)
    trained = training.train(encoded.to_arrow_refs(), counts["kept"], model_card or {})
    losses = trained.pop("losses")
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "losses": losses,
        "steps": len(losses),
        "left_out_no_target": counts["no_target"],
        "left_out_too_long": counts["too_long"],
        "start_s": trained.pop("loop_started") - started,
        "duration_s": time.time() - started,
        **trained,
    }


# --- data: encoded on CPUs by Ray Data
# -----------------------------------------------------------------------


def encode_examples(examples: "Dataset", job: FinetuneJob) -> "Dataset":
    """Encode in map tasks and keep the result in Ray's object store (8 bytes per token).

    Returns:
        rows of `encoding.Row` with no_target and too_long; a row that is left out has empty lists and 1 in
        its reason's column.
    """
    return examples.map_batches(
        _encode_block,  # type: ignore[arg-type]
        batch_size=None,  # a number would bundle many files of examples for one task
        batch_format="pyarrow",
        fn_kwargs={
            "source": dict(job.source),
            "max_length_tokens": job.finetune.max_length_tokens,
            "chat": job.chat,
            "objective": job.objective,
        },
    ).materialize()


def _encode_block(
    block: "pyarrow.Table",
    source: dict[str, Any],
    max_length_tokens: int,
    chat: tuple[config.Model, bool | None],
    objective: str,
) -> "Iterator[pyarrow.Table]":
    """Some rows at a time, since a block may hold a whole file."""
    import pyarrow as pa

    renders = Chat(_tokenizer(tuple(sorted(source.items()))), *chat)
    integers = pa.list_(pa.int32())  # explicit, or Ray Data would make tensor columns out of equal lengths
    kinds = dict.fromkeys(("input_ids", "labels", "lengths"), integers)
    kinds |= {"id": pa.string(), "weight": pa.float64()}
    names = (*encoding.Row.__annotations__, "no_target", "too_long")
    for batch in block.to_batches(max_chunksize=ENCODE_ROWS):
        rows = [
            encoded
            for row in batch.to_pylist()
            for encoded in _encode(renders, row, max_length_tokens, objective)
        ]
        yield pa.table(
            {name: pa.array([row[name] for row in rows], kinds.get(name, pa.int64())) for name in names}
        )


def _encode(
    chat: Chat, example: Mapping[str, Any], max_length_tokens: int, objective: str = "sft"
) -> list[dict[str, Any]]:
    """One row per pair, or per sequence; a conversation whose turns can't share one has several, the first
    under the example's id.

    Raises:
        ValueError: the objective can't learn the example, or as `encoding.encode`.
    """
    id, rejected = example["id"], example.get("rejected")
    weight = 1.0 if example.get("weight") is None else float(example["weight"])
    if problem := objectives.misfit(objective, pair=rejected is not None, weight=weight):
        raise ValueError(f"fine-tune: example {id!r}: {problem}")
    conversations = [example["messages"]] if rejected is None else [example["messages"], rejected]
    sides, counts = list[list[encoding.Encoded]](), {"no_target": 0, "too_long": 0}
    for messages in conversations:
        found = encoding.encode(chat, _marked(messages), max_length_tokens)
        if isinstance(found, str):
            nothing = {"input_ids": [], "labels": [], "lengths": [], "chosen": 0, "trained_tokens": 0}
            return [{"id": id, "weight": weight, **nothing, **counts, found: 1}]
        sides.append(found)
    if rejected is not None:
        rows = [encoding.as_row(id, sides[0] + sides[1], chosen=len(sides[0]), weight=weight)]
    else:
        ids = [f"{id}#{number}" if number else id for number in range(len(sides[0]))]
        rows = [encoding.as_row(id, [one], weight=weight) for id, one in zip(ids, sides[0], strict=True)]
    return [{**row, **counts} for row in rows]


def _marked(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Of a person's own {role, content} the last message is trained."""
    if any(message.get("train") is not None or message.get("pieces") for message in messages):
        return messages
    return [*messages[:-1], {**messages[-1], "train": True}]


@cache
def _tokenizer(source: tuple[tuple[str, Any], ...]) -> Any:
    """Loaded once per Ray worker process, which runs many batches."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(**dict(source))


def _count(encoded: "Dataset", max_length_tokens: int) -> dict[str, int]:
    """Sums over the encoded rows, by a task beside each block: no token comes to the driver, nothing is
    shuffled, and the processes are those that have encoded.
    """
    import ray

    count = ray.remote(_count_block)
    by_block = ray.get([count.remote(block) for block in encoded.to_arrow_refs()])
    counts = {name: sum(found[name] for found in by_block) for name in ("rows", *COUNTED)}
    if counts["rows"] == 0:
        raise ValueError(
            "fine-tune: expected at least one example, found none; check the filter and the rewards"
        )
    counts["kept"] = counts["rows"] - counts["no_target"] - counts["too_long"]
    if counts["kept"] == 0:
        raise ValueError(
            f"fine-tune: expected examples that can be trained on, found that all {counts['rows']} are left "
            f"out: {counts['too_long']} longer than finetune.max_length_tokens = {max_length_tokens} (raise "
            f"it, or lower sampling.*.max_tokens), {counts['no_target']} with no text to train on"
        )
    return counts


def _count_block(block: "pyarrow.Table") -> dict[str, int]:
    import pyarrow.compute as pc

    sums = {name: pc.sum(block.column(name)).as_py() or 0 for name in COUNTED if block.num_rows}  # type: ignore[attr-defined]
    return {"rows": block.num_rows, **dict.fromkeys(COUNTED, 0), **sums}
