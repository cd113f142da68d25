"""Questions: raw rows of any source -> canonical rows in three splits that never share a question.

Reads the sources named in `config.Questions` (through `reading`) and the corpus for their documents (through
`retrieval`); writes nothing but temporary files. A canonical row is {id, question, answers: list[str], split,
documents: list[str], choices: list[str]}; with choices the answers are letters (A, B, ...).
"""

import contextlib
import dataclasses
import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from stasc_ray.config import Questions, hashing
from stasc_ray.tasks.canonical import Row
from stasc_ray.tasks.loading.nearness import Neighbours
from stasc_ray.tasks.loading.pools import Pool, agree
from stasc_ray.tasks.loading.reading import SANDBOX, BadRows, check_columns, read
from stasc_ray.tasks.loading.retrieval import check_corpus, retrieve

SplitName = Literal["train", "dev", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "dev", "test")
KEPT_FIRST: tuple[SplitName, ...] = ("test", "dev", "train")
NEAR_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class LoadedQuestions:
    """The questions of a run."""

    rows: list[Row]
    """Question rows: train, then dev, then test, each in the seeded order in which they were chosen."""
    dropped_duplicates: int
    """Rows left out because their question (with its documents and choices) was there already, in the same
    split, where its references are joined, or in one that has precedence."""
    skipped_bad_rows: int
    """Unusable rows left out (`on_bad_row = "skip"`)."""
    bad_row_examples: tuple[str, ...] = ()
    """File, line and reason of the first skipped rows."""
    train_equal: int = 0
    """Train questions that stand in dev or test too, but for case, punctuation and articles."""
    train_near: int = 0
    """Further ones that are near one of dev or test (`near_duplicates`)."""
    near_dropped: bool = False
    """Whether these were left out (`on_near_duplicate = "drop"`) or are among the rows."""
    near_examples: tuple[str, ...] = ()
    """Ids and texts of the first ones."""
    retrieved: int = 0
    """Questions that got their documents from `corpus`."""

    def notes(self) -> list[str]:
        """What a person should know of the rows, a sentence each; empty if there is nothing."""
        lines = []
        if self.train_equal or self.train_near:
            kept = 'kept (questions.on_near_duplicate = "drop" leaves them out)'
            lines.append(
                f"{self.train_equal} train questions are in dev or test but for case, punctuation and "
                f"articles, {self.train_near} more are near one there: "
                f"{'left out' if self.near_dropped else kept}. {self.near_examples[0]}"
            )
        if self.bad_row_examples:
            lines.append(f"the first bad row skipped: {self.bad_row_examples[0]}")
        if self.retrieved:
            lines.append(f"{self.retrieved} got their documents from the corpus")
        return lines


class _Place(NamedTuple):
    """Where the questions of a split are drawn from; splits with the same place share its questions."""

    source: str
    label: str | None


class _Taken(NamedTuple):
    """A question that an earlier split took."""

    source: str
    spelling: int
    row: Row


@dataclasses.dataclass
class _Counts:
    duplicates: int = 0
    near: dict[str, int] = dataclasses.field(default_factory=lambda: {"equal": 0, "near": 0})
    near_examples: list[str] = dataclasses.field(default_factory=list)


def load_questions(questions: Questions, seed: int, splits: Sequence[SplitName] = SPLITS) -> LoadedQuestions:
    """Read, check, split and deduplicate the questions of a run.

    The same sources, config and seed give the same rows, whatever the order of the rows in the sources. Test
    chooses first, then dev, then train, so a question in two splits stays in test rather than dev rather than
    train.

    Args:
        questions: sources, columns and splits.
        seed: chooses the questions of a split that has a `limit`.
        splits: which splits to load; the others are not read (to evaluate a model, `("test",)` is enough).

    Raises:
        FileNotFoundError: nothing at a source, or no corpus.
        ValueError: a bad row (the message starts with file and line), no questions, wrong columns.
        ImportError: a Hub dataset without the `datasets` package, a corpus without `bm25s`, or a URL without
            its fsspec driver.
    """
    check_columns(questions.columns)
    check_corpus(questions)
    places: dict[SplitName, _Place] = {
        split: _place(questions, split) for split in KEPT_FIRST if split in splits
    }
    counts, bad_rows = _Counts(), BadRows()
    with contextlib.ExitStack() as stack:
        pools: dict[_Place, Pool] = {}
        for source in dict.fromkeys(place.source for place in places.values()):
            labels = list(dict.fromkeys(place.label for place in places.values() if place.source == source))
            for label, pool in read(source, labels, questions, seed, bad_rows).items():
                pools[_Place(source, label)] = stack.enter_context(contextlib.closing(pool))
                counts.duplicates += pool.duplicates
        ambiguous = _ambiguous_ids(pools.values())
        chosen = _choose(questions, places, pools, seed, counts)
    rows: list[Row] = []
    for split in SPLITS:
        for row in chosen.get(split, ()):  # in place: a million rows are not there twice
            row["id"] = f"{split}/{row['id']}" if row["id"] in ambiguous else row["id"]
            row["split"] = split
            rows.append(row)
    if len({row["id"] for row in rows}) < len(rows):
        raise ValueError(
            "questions: ids like 'train/x' clash with the split name put before an id that two splits use"
        )
    return LoadedQuestions(
        rows,
        counts.duplicates,
        bad_rows.count,
        tuple(bad_rows.examples),
        train_equal=counts.near["equal"],
        train_near=counts.near["near"],
        near_dropped=questions.on_near_duplicate == "drop",
        near_examples=tuple(counts.near_examples),
        retrieved=retrieve(rows, questions),
    )


def _place(questions: Questions, split: SplitName) -> _Place:
    """The place a split draws from: its own, or that of train (another split of the same source, or
    carved).
    """
    own, train = getattr(questions, split), questions.train
    source = own.source or train.source
    if source is None:
        raise ValueError(
            f"questions.{split}.source: expected a file, folder, URL, Hub dataset id or {SANDBOX!r}, found "
            f"none"
        )
    if source == SANDBOX:
        if own.limit is None:
            raise ValueError(
                f"questions.{split}.limit: expected a number, the sandbox makes as many questions as asked"
            )
        return _Place(SANDBOX, split)
    label = own.split if own.source else own.split or train.split
    if own.source is None and label == train.split and own.limit is None:
        raise ValueError(
            f"questions.{split}.limit: expected a number, because without a source it is carved from train's"
        )
    return _Place(source, label)


def _choose(
    questions: Questions,
    places: Mapping[SplitName, _Place],
    pools: Mapping[_Place, Pool],
    seed: int,
    counts: _Counts,
) -> dict[SplitName, list[Row]]:
    """Each split's rows, in the order of hash(seed, split, id): no row moves when others are added or
    reordered.
    """
    taken: dict[bytes, list[_Taken]] = {}
    chosen: dict[SplitName, list[Row]] = {}
    for split, place in places.items():
        pool, limit = pools[place], getattr(questions, split).limit
        free = _free(pool, place, split, seed, taken, counts)
        if split == "train":
            pool.forget_keys()
            measured = [row for rows in chosen.values() for row in rows]
            rows = list(_train_rows(pool, free, measured, questions, counts))
        else:
            slots = _in_order(free, limit)
            rows = [pool.row(slot) for slot in slots]
            by_slot = dict(zip(slots, rows, strict=True))
            for slot, key, _ in pool:
                if slot in by_slot:
                    found = _Taken(place.source, pool.spelling(slot), by_slot[slot])
                    taken.setdefault(key, []).append(found)
        if not rows:
            near = sum(counts.near.values()) if split == "train" and chosen else 0
            also = f", and {near} are too near one of those (questions.on_near_duplicate)" if near else ""
            raise ValueError(
                f"questions.{split}: expected questions, found none left in {place.source}: all "
                f"{len(pool)} are in {' and '.join(chosen)} already{also}; "
                f"lower those limits or give {split} a source of its own"
            )
        chosen[split] = rows
    return chosen


def _free(
    pool: Pool,
    place: _Place,
    split: str,
    seed: int,
    taken: Mapping[bytes, list[_Taken]],
    counts: _Counts,
) -> list[int]:
    """The questions that no earlier split took, as numbers in the split's order whose last 32 bits are the
    slot.
    """
    free = []
    for slot, key, identity in pool:
        others = taken.get(key)
        same = others and [other for other in others if _same(pool, slot, other)]
        if not same:
            free.append(int.from_bytes(_order(seed, split, identity), "big") << 32 | slot)
        elif all((other.source, other.row["id"]) != (place.source, identity) for other in same):
            # the same row, drawn by another split of a shared place, is no duplicate
            counts.duplicates += 1
    return free


def _same(pool: Pool, slot: int, other: _Taken) -> bool:
    """Whether two questions that are equal but for case and white space are the same one."""
    return pool.spelling(slot) == other.spelling or agree(pool.row(slot)["answers"], other.row["answers"])


def _in_order(free: list[int], limit: int | None) -> list[int]:
    """The first slots."""
    first = sorted(free) if limit is None else heapq.nsmallest(limit, free)
    return [number & 0xFFFFFFFF for number in first]


def _train_rows(
    pool: Pool, free: list[int], measured: list[Row], questions: Questions, counts: _Counts
) -> Iterator[Row]:
    """Train's rows, among which those near dev or test are counted and, if the config says so, left out."""
    limit, drop = questions.train.limit, questions.on_near_duplicate == "drop"
    neighbours = Neighbours(measured, questions.near_duplicates)
    count = 0
    for slot in _in_order(free, None if drop else limit):
        row = pool.row(slot)
        if found := neighbours.nearest(row):
            how, other = found
            counts.near[how] += 1
            if len(counts.near_examples) < NEAR_EXAMPLES:
                counts.near_examples.append(
                    f"{how}: train {row['id']!r} {row['question'][:120]!r}, measured {other['id']!r} "
                    f"{other['question'][:120]!r}"
                )
            if drop:
                continue
        yield row
        count += 1
        if count == limit:
            return


def _order(seed: int, split: str, identity: str) -> bytes:
    return hashing.digest(f"{seed}/{split}/{identity}")


def _ambiguous_ids(pools: Collection[Pool]) -> set[str]:
    """Ids that stand for different questions in different places (each file counting from 0)."""
    first: dict[str, tuple[bytes, int]] = {}
    if len(pools) < 2:
        return set()
    found: set[str] = set()
    for pool in pools:
        for slot, key, identity in pool:
            question = (key, pool.spelling(slot))
            if first.setdefault(identity, question) != question:
                found.add(identity)
    return found
