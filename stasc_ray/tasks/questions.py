"""Questions: raw rows of any source -> canonical rows in three splits that never share a question.

Reads the sources named in `config.Questions` (through `sources`, or `sandbox`); writes nothing.
A canonical row is {id, question, answers: list[str], split, documents: list[str], choices: list[str]}; with
choices the answers are letters (A, B, ...).
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from stasc_ray.config import Columns, Questions, dataset, hashing
from stasc_ray.tasks.canonical import Row, canonical_row
from stasc_ray.tasks.columns import MISSING, Paths, as_paths, find
from stasc_ray.tasks.json_rows import rows_path
from stasc_ray.tasks.record import Record
from stasc_ray.tasks.sources import records
from stasc_ray.tasks.values import normalize

SplitName = Literal["train", "dev", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "dev", "test")
KEPT_FIRST: tuple[SplitName, ...] = ("test", "dev", "train")
SANDBOX = "sandbox"
OWN_COLUMNS = ("canonical", SANDBOX)
"""Presets whose columns a source may have or not."""
BAD_ROW_EXAMPLES = 20


@dataclasses.dataclass(frozen=True)
class LoadedQuestions:
    """The questions of a run."""

    rows: list[Row]
    """Question rows: train, then dev, then test, each in the seeded order in which they were chosen."""
    dropped_duplicates: int
    """Rows left out because their question text was there already, in the same split or in one that has
    precedence."""
    skipped_bad_rows: int
    """Unusable rows left out (`on_bad_row = "skip"`)."""
    bad_row_examples: tuple[str, ...] = ()
    """File, line and reason of the first skipped rows."""


class _Place(NamedTuple):
    """Where the questions of a split are drawn from; splits with the same place share its questions."""

    source: str
    label: str | None


@dataclasses.dataclass
class _Counts:
    bad_rows: dict[str, str] = dataclasses.field(default_factory=dict)  # place -> problem
    duplicates: int = 0


def load_questions(questions: Questions, seed: int, splits: Sequence[SplitName] = SPLITS) -> LoadedQuestions:
    """Read, check, split and deduplicate the questions of a run.

    The same sources, config and seed give the same rows, whatever the order of the rows in the sources. Test
    chooses first, then dev, then train, so a text in two splits stays in test rather than dev rather than
    train.

    Args:
        questions: sources, columns and splits.
        seed: chooses the questions of a split that has a `limit`.
        splits: which splits to load; the others are not read (to evaluate a model, `("test",)` is enough).

    Raises:
        FileNotFoundError: nothing at a source.
        ValueError: a bad row (the message starts with file and line), no questions, wrong columns.
        ImportError: a Hub dataset without the `datasets` package, or a URL without its fsspec driver.
    """
    _check_pattern(questions.columns)
    places: dict[SplitName, _Place] = {
        split: _place(questions, split) for split in KEPT_FIRST if split in splits
    }
    counts = _Counts()
    pools: dict[_Place, dict[str, Row]] = {}  # place -> normalized question text -> row
    for source in dict.fromkeys(place.source for place in places.values()):
        labels = list(dict.fromkeys(place.label for place in places.values() if place.source == source))
        for label, rows in _read(source, labels, questions, seed, counts).items():
            pools[_Place(source, label)] = _drop_duplicates(rows, counts)
    chosen = _choose(questions, places, pools, seed, counts)
    ambiguous = _ambiguous_ids(pools.values())
    rows = [_place_row(row, split, ambiguous) for split in SPLITS if split in chosen for row in chosen[split]]
    if len({row["id"] for row in rows}) < len(rows):
        raise ValueError(
            "questions: ids like 'train/x' clash with the split name put before an id that two splits use"
        )
    examples = tuple(
        f"{place}: {problem}" for place, problem in list(counts.bad_rows.items())[:BAD_ROW_EXAMPLES]
    )
    return LoadedQuestions(rows, counts.duplicates, len(counts.bad_rows), examples)


def _check_pattern(columns: Columns) -> None:
    if columns.answer_pattern is None:
        return
    try:
        groups = re.compile(columns.answer_pattern).groups
    except re.error as error:
        raise ValueError(f"questions.columns.answer_pattern: not a regular expression: {error}") from error
    if not groups:
        raise ValueError(
            "questions.columns.answer_pattern: expected a group (...) around the answer, found none"
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


def _read(
    source: str, labels: Sequence[str | None], questions: Questions, seed: int, counts: _Counts
) -> dict[str | None, list[Row]]:
    """Parse a source once and deal its rows to the wanted labels (None takes every row)."""
    columns = Columns(**dataset("canonical")["columns"]) if source == SANDBOX else questions.columns
    named = (
        questions.preset not in OWN_COLUMNS or columns.choices != dataset("canonical")["columns"]["choices"]
    )
    choices_required = source != SANDBOX and columns.choices is not None and named
    pools: dict[str | None, list[Row]] = {label: [] for label in labels}
    seen: dict[tuple[str | None, str], tuple[Row, str]] = {}
    labels_found: set[str | None] = set()
    unseen = _written_columns(questions)
    for record in _records(source, labels, questions, columns, seed):
        labels_found.add(record.label)
        unseen -= {field for field in unseen if _has(record.values, getattr(columns, field))}
        wanted = [label for label in labels if label in (None, record.label)]
        if not wanted and record.problem is None:
            continue
        try:
            if record.problem:
                raise ValueError(record.problem)
            row = canonical_row(record.values, columns)
            if choices_required and not row["choices"]:
                raise ValueError(f"no choices: expected a list in column {columns.choices!r}")
            for label in wanted:
                _check_repeated_id(seen, label, row, record.place)
        except ValueError as error:
            if questions.on_bad_row == "fail":
                raise ValueError(f"{record.place}: {error}{_advice(record, columns)}") from None
            counts.bad_rows[record.place] = str(error)
            continue
        for label in wanted:
            pools[label].append(row)
    _check_source(source, pools, labels_found, unseen, questions, counts)
    return pools


def _advice(record: Record, columns: Columns) -> str:
    inside = rows_path(record.values, columns.question)
    if inside and columns.rows is None:
        return f". There are questions inside the row: set questions.columns.rows = {inside!r}"
    return '. Repair the row, or set questions.on_bad_row = "skip" to leave such rows out.'


def _records(
    source: str, labels: Sequence[str | None], questions: Questions, columns: Columns, seed: int
) -> Iterator[Record]:
    if source != SANDBOX:
        required: list[Paths] = [*as_paths(columns.question), columns.answers]
        optional = [
            path for word in (columns.id, columns.choices, columns.documents) for path in as_paths(word)
        ]
        yield from records(source, required, optional, labels, questions.hub_config, columns.rows)
        return
    from stasc_ray.tasks import sandbox

    for split in filter(None, labels):
        limit = getattr(questions, split).limit
        for number, row in enumerate(sandbox.questions(split, limit, seed), start=1):
            yield Record(f"sandbox [{split}], row {number}", split, row)


def _check_repeated_id(seen: dict[Any, tuple[Row, str]], label: str | None, row: Row, place: str) -> None:
    """A repeated id is an error, unless the whole row is repeated (then it is a duplicate like others)."""
    first, first_place = seen.setdefault((label, row["id"]), (row, place))
    if first != row:
        raise ValueError(f"repeated id: {row['id']!r} belongs to another question at {first_place}")


def _check_source(
    source: str,
    pools: Mapping[str | None, list[Row]],
    labels_found: set[str | None],
    unseen: set[str],
    questions: Questions,
    counts: _Counts,
) -> None:
    """What shows only after the last row: a split with nothing in it, a mapped column that no row has."""
    for label, rows in pools.items():
        if not rows:
            what = "questions" if label is None else f"rows of split {label!r}"
            splits = sorted(name for name in labels_found if name is not None)
            found = f"splits {', '.join(splits)}" if splits and label is not None else "none"
            bad = next((f"; {place}: {problem}" for place, problem in counts.bad_rows.items()), "")
            raise ValueError(
                f"questions: expected {what} in {source}, found {found} ({len(counts.bad_rows)} bad "
                f"rows{bad})"
            )
    for field in sorted(unseen) if source != SANDBOX else ():
        raise ValueError(
            f"questions.columns.{field}: expected column {getattr(questions.columns, field)!r} in {source}, "
            "found it in no row"
        )


def _written_columns(questions: Questions) -> set[str]:
    """Optional columns that somebody wrote down: a preset's may be missing, these may not."""
    known = dataset(questions.preset)["columns"]
    return {
        field
        for field in ("id", "documents")
        if as_paths(getattr(questions.columns, field)) not in ((), as_paths(known.get(field)))
    }


def _has(values: Mapping[str, Any], word: Paths) -> bool:
    return any(find(values, path) is not MISSING for path in as_paths(word))


def _drop_duplicates(rows: Iterable[Row], counts: _Counts) -> dict[str, Row]:
    """Normalized question text -> row; among equal texts the smallest id stays, so that file order does not
    matter.
    """
    unique: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        if unique.setdefault(normalize(row["question"]), row) is not row:
            counts.duplicates += 1
    return unique


def _choose(
    questions: Questions,
    places: Mapping[SplitName, _Place],
    pools: Mapping[_Place, dict[str, Row]],
    seed: int,
    counts: _Counts,
) -> dict[SplitName, list[Row]]:
    """Each split's rows, in the order of hash(seed, split, id): no row moves when others are added or
    reordered.
    """
    taken: dict[str, Row] = {}
    chosen: dict[SplitName, list[Row]] = {}
    for split, place in places.items():
        free = []
        for text, row in pools[place].items():
            if text not in taken:
                free.append((_order(seed, split, row["id"]), text, row))
            elif taken[text] is not row:
                # the same row, drawn by another split of a shared place, is no duplicate
                counts.duplicates += 1
        free.sort(key=lambda item: item[:2])
        free = free[: getattr(questions, split).limit]
        if not free:
            raise ValueError(
                f"questions.{split}: expected questions, found none left in {place.source}: all "
                f"{len(pools[place])} are in {' and '.join(chosen)} already; "
                f"lower those limits or give {split} a source of its own"
            )
        taken.update((text, row) for _, text, row in free)
        chosen[split] = [row for _, _, row in free]
    return chosen


def _order(seed: int, split: str, identity: str) -> bytes:
    return hashing.digest(f"{seed}/{split}/{identity}")


def _ambiguous_ids(pools: Iterable[Mapping[str, Row]]) -> set[str]:
    """Ids that stand for different texts in different places (each file counting from 0)."""
    first: dict[str, str] = {}
    return {
        row["id"] for pool in pools for text, row in pool.items() if first.setdefault(row["id"], text) != text
    }


def _place_row(row: Row, split: str, ambiguous: set[str]) -> Row:
    identity = f"{split}/{row['id']}" if row["id"] in ambiguous else row["id"]
    return {**row, "id": identity, "split": split}
