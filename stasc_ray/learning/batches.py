"""Which examples each optimizer step trains on, and how they are dealt to the workers.

Reads encoded rows as Arrow tables; writes nothing. Every worker computes the same plan from the same tables,
so workers agree on token counts and on the number of forward passes without talking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from stasc_ray.config import Finetune, hashing
from stasc_ray.learning import encoding

if TYPE_CHECKING:
    import pyarrow

Shares = list[list[list[int]]]
"""For each worker its forward passes, each a list of example indices; a worker may have none."""


@dataclass(frozen=True)
class Examples:
    """The encoded examples that are trained on. Tables stay in Ray's shared memory, rows are views into
    them. A pair is one example: its sequences are dealt, packed and counted together.
    """

    tables: Sequence["pyarrow.Table"]
    """Blocks of `encoding.Row`."""
    table: np.ndarray
    """(N,) which block an example is in."""
    row: np.ndarray
    """(N,) which row of that block."""
    ids: Sequence[str]
    """(N,) ids."""
    lengths: np.ndarray
    """(N,) tokens, of all sequences."""
    trained: np.ndarray
    """(N,) tokens that are trained on, of all sequences."""
    squares: np.ndarray
    """(N,) sum of the squared lengths of its sequences: what attention costs."""
    stacked: np.ndarray
    """(N,) tokens that it takes side by side: number of sequences times the longest."""
    pairs: np.ndarray
    """(N,) whether it is a pair."""
    weights: np.ndarray
    """(N,) float32"""
    reference: np.ndarray | None = None
    """(N, 2) float32, of pairs: log-probabilities of both sides under the weights at the start; see
    reference.py."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts(self) -> np.ndarray:
        """(N,) what the mean loss of a batch is taken over: 1 for a pair, else trained tokens."""
        return np.where(self.pairs, 1, self.trained)

    def room(self, *, stacked: bool) -> np.ndarray:
        """(N,) tokens that an example takes in a forward pass."""
        return self.stacked if stacked else self.lengths

    def read(self, index: int) -> dict[str, np.ndarray]:
        """input_ids and labels, (T,) int32 each, of an example's first sequence."""
        return self.sequences(index)[0][0]

    def sequences(self, index: int) -> list[tuple[dict[str, np.ndarray], int]]:
        """The same of all its sequences, each with its side: 0, or 1 for the rejected one."""
        table, row = self.tables[self.table[index]], int(self.row[index])
        arrays = {name: table.column(name)[row].values.to_numpy() for name in ("input_ids", "labels")}
        chosen = table.column("chosen")[row].as_py()
        ends = np.cumsum(table.column("lengths")[row].as_py())
        return [
            ({name: values[start:end] for name, values in arrays.items()}, int(number >= chosen))
            for number, (start, end) in enumerate(pairwise([0, *ends.tolist()]))
        ]


def collect(tables: Sequence["pyarrow.Table"]) -> Examples:
    """Index the rows that have something to train on; rows that were left out have no tokens."""
    kept = [np.flatnonzero(table.column("trained_tokens").to_numpy()) for table in tables]

    def of(name: str) -> np.ndarray:
        columns = [table.column(name).to_numpy()[rows] for table, rows in zip(tables, kept, strict=True)]
        return np.concatenate(columns)

    lengths = of("lengths")  # of lists
    return Examples(
        tables=tables,
        table=np.repeat(np.arange(len(tables)), [len(rows) for rows in kept]),
        row=np.concatenate(kept),
        ids=of("id").tolist(),
        lengths=np.array([each.sum() for each in lengths], np.int64),
        trained=of("trained_tokens"),
        squares=np.array([(each.astype(np.int64) ** 2).sum() for each in lengths], np.int64),
        stacked=np.array([len(each) * each.max() for each in lengths], np.int64),
        pairs=of("chosen") < np.array([len(each) for each in lengths], np.int64),
        weights=of("weight").astype(np.float32),
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
) -> Shares:
    """Deal a global batch to the workers and cut each share into forward passes of at most `capacity_tokens`
    or one example.

    Examples go longest first to the worker with the fewest tokens so far, so that no worker waits long for
    another. A pass's examples are to be packed into one sequence or, with `stacked`, put side by side.
    With `capacity_tokens` 0 each example is a pass of its own.

    Args:
        batch: indices of examples.
        lengths: (N,) of all examples, `Examples.room`.
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
