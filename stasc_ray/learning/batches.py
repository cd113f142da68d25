"""Which examples each optimizer step trains on, and how they are dealt to the workers.

Reads encoded rows as Arrow tables; writes nothing. Every worker computes the same plan from the same tables,
so workers agree on token counts and on the number of forward passes without talking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stasc_ray.config import Finetune, hashing
from stasc_ray.learning import encoding

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Examples:
    """The encoded examples that are trained on. Tables stay in Ray's shared memory, rows are views into
    them.
    """

    tables: Sequence["pyarrow.Table"]
    """Blocks with columns id, input_ids, labels, trained_tokens."""
    table: np.ndarray
    """(N,) which block an example is in."""
    row: np.ndarray
    """(N,) which row of that block."""
    ids: Sequence[str]
    """(N,) ids."""
    lengths: np.ndarray
    """(N,) tokens."""
    trained: np.ndarray
    """(N,) tokens that are trained on."""

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> dict[str, np.ndarray]:
        """input_ids and labels, (T,) int32 each, of one example."""
        table, row = self.tables[self.table[index]], int(self.row[index])
        return {name: table.column(name)[row].values.to_numpy() for name in ("input_ids", "labels")}


def collect(tables: Sequence["pyarrow.Table"]) -> Examples:
    """Index the rows that have something to train on; rows that were left out have no tokens."""
    import pyarrow.compute as pc

    kept = [np.flatnonzero(table.column("trained_tokens").to_numpy()) for table in tables]
    lengths = [pc.list_value_length(table.column("input_ids")).to_numpy() for table in tables]  # type: ignore[attr-defined]
    trained = [table.column("trained_tokens").to_numpy() for table in tables]
    ids = [table.column("id").to_pylist() for table in tables]
    return Examples(
        tables=tables,
        table=np.repeat(np.arange(len(tables)), [len(rows) for rows in kept]),
        row=np.concatenate(kept),
        ids=[ids[number][row] for number, rows in enumerate(kept) for row in rows],
        lengths=np.concatenate([values[rows] for values, rows in zip(lengths, kept, strict=True)]),
        trained=np.concatenate([values[rows] for values, rows in zip(trained, kept, strict=True)]),
    )


def schedule(examples: Examples, finetune: Finetune, seed: str) -> list[np.ndarray]:
    """The indices of each step's global batch: `finetune.epochs` passes, or passes until
    `finetune.trained_tokens`.

    Each pass has its order, by a hash of (seed, pass, id): it depends on neither the order in which rows
    came, which Ray Data does not keep, nor on the number of workers. The last batch of a pass may be smaller;
    with `trained_tokens` a batch goes over from one pass to the next.
    """
    if finetune.trained_tokens is None:
        passes = [_order(examples.ids, f"{seed}/{epoch}") for epoch in range(finetune.epochs)]
        return [batch for order in passes for batch in _cut(order, finetune.batch_size)]
    chosen: list[np.ndarray] = []
    left = finetune.trained_tokens
    while left > 0:
        order = _order(examples.ids, f"{seed}/{len(chosen)}")
        reached = np.searchsorted(np.cumsum(examples.trained[order]), left) + 1
        chosen.append(order[:reached])
        left -= int(examples.trained[chosen[-1]].sum())
    return _cut(np.concatenate(chosen), finetune.batch_size)


def _order(ids: Sequence[str], seed: str) -> np.ndarray:
    return np.argsort([_hash(f"{seed}/{id}") for id in ids], kind="stable")


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[first : first + size] for first in range(0, len(order), size)]


def deal(
    batch: np.ndarray, lengths: np.ndarray, workers: int, capacity_tokens: int, *, stacked: bool
) -> list[list[list[int]]]:
    """Deal a global batch to the workers and cut each share into forward passes of at most `capacity_tokens`
    or one example.

    Examples go longest first to the worker with the fewest tokens so far, so that no worker waits long for
    another. A pass's examples are to be packed into one sequence or, with `stacked`, put side by side.
    With `capacity_tokens` 0 each example is a pass of its own.

    Returns:
        for each worker its forward passes, each a list of example indices; a worker may have none.
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    tokens = [0] * workers
    for index in sorted(batch.tolist(), key=lambda i: -lengths[i]):
        worker = tokens.index(min(tokens))
        shares[worker].append(index)
        tokens[worker] += int(lengths[index])
    if not capacity_tokens:
        return [[[index] for index in share] for share in shares]
    grouped = encoding.stack_lengths if stacked else encoding.pack_lengths
    return [
        [
            [share[place] for place in group]
            for group in grouped([int(lengths[i]) for i in share], capacity_tokens)
        ]
        for share in shares
    ]


def _hash(text: str) -> int:
    """63 bits: what NumPy's signed integers hold."""
    return hashing.number(text) >> 1
