"""A source, read once: its rows checked and dealt to the pools of its splits.

Reads the sources named in `config.Questions` (through `sources`, or `sandbox`); writes nothing but the pools'
temporary files.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stasc_ray.config import Columns, Questions, dataset
from stasc_ray.tasks.canonical import canonical_row
from stasc_ray.tasks.loading.choice_columns import FROM_1
from stasc_ray.tasks.loading.columns import MISSING, Paths, as_paths, find, steps
from stasc_ray.tasks.loading.json_rows import rows_paths
from stasc_ray.tasks.loading.pools import Packed, Pool, pack
from stasc_ray.tasks.loading.record import Record
from stasc_ray.tasks.sources import records

SANDBOX = "sandbox"
OWN_COLUMNS = ("canonical", SANDBOX)
"""Presets whose columns a source may have or not."""
BAD_ROW_EXAMPLES = 20


@dataclass
class BadRows:
    """Rows that could not be used."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """Place and problem of the first ones."""

    def add(self, place: str, problem: str) -> None:
        self.count += 1
        if len(self.examples) < BAD_ROW_EXAMPLES:
            self.examples.append(f"{place}: {problem}")


@dataclass
class _Counting:
    """Whether the answers of a source count the choices from 1 where the config says from 0."""

    beyond: str = ""
    """The first row whose index is one too large."""
    first_named: bool = False
    """Whether a row before names the first choice, as index 0 does."""

    def refused(self, place: str, problem: str) -> None:
        if problem.endswith(FROM_1) and not self.beyond:
            self.beyond = f"{place}: {problem}"

    def check(self) -> None:
        """Refuse the config, not the row: the other rows would be paid for the choice after the right one."""
        if self.beyond and not self.first_named:
            raise ValueError(f"{self.beyond} (no row read so far names its first choice)")


def check_columns(columns: Columns) -> None:
    """Refuse a column word or a pattern that can't be read, before any file is.

    Raises:
        ValueError: it names the word.
    """
    words = (columns.question, columns.answers, columns.id, columns.choices, columns.documents, columns.rows)
    for path in (path for word in words for path in as_paths(word)):
        steps(path)
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


def read(
    source: str, labels: Sequence[str | None], questions: Questions, seed: int, bad_rows: BadRows
) -> dict[str | None, Pool]:
    """Parse a source once and deal its rows to the wanted labels (None takes every row).

    Raises:
        ValueError: a bad row, a label without rows, a column that no row has.
    """
    columns = Columns(**dataset("canonical")["columns"]) if source == SANDBOX else questions.columns
    choices_required = source != SANDBOX and _choices_required(questions)
    pools: dict[str | None, Pool] = {label: Pool() for label in labels}
    dealt: dict[str | None, list[Pool]] = {}
    counting = _Counting()
    unseen = _written_columns(questions) if source != SANDBOX else set()
    for record in _records(source, labels, questions, columns, seed):
        if record.label not in dealt:
            dealt[record.label] = [pools[label] for label in labels if label in (None, record.label)]
        if unseen:
            unseen -= {name for name in unseen if _has(record.values, getattr(columns, name))}
        wanted = dealt[record.label]
        if not wanted and record.problem is None:
            continue
        try:
            packed = _packed(record, columns, choices_required)
            for pool in wanted:
                pool.check(packed)
        except ValueError as error:
            counting.refused(record.place, str(error))
            if questions.on_bad_row == "fail":
                counting.check()
                raise ValueError(f"{record.place}: {error}{_advice(record, columns)}") from None
            bad_rows.add(record.place, str(error))
            continue
        counting.first_named |= packed.answers == ["A"]
        for pool in wanted:
            pool.add(packed, record.where, record.number)
    counting.check()
    _settle(source, pools, dealt, bad_rows)
    for name in sorted(unseen):
        raise ValueError(
            f"questions.columns.{name}: expected column {getattr(columns, name)!r} in {source}, found it in "
            "no row"
        )
    return pools


def _packed(record: Record, columns: Columns, choices_required: bool) -> Packed:
    if record.problem:
        raise ValueError(record.problem)
    row = canonical_row(record.values, columns)
    if choices_required and not row["choices"]:
        raise ValueError(f"no choices: expected a list in column {columns.choices!r}")
    return pack(row)


def _choices_required(questions: Questions) -> bool:
    """Whether somebody said that the questions have choices: a preset, or a column that was written down."""
    usual = dataset("canonical")["columns"]["choices"]
    return questions.columns.choices is not None and (
        questions.preset not in OWN_COLUMNS or questions.columns.choices != usual
    )


def _advice(record: Record, columns: Columns) -> str:
    inside = " or ".join(map(repr, itertools.islice(rows_paths(record.values, columns.question), 4)))
    if inside and columns.rows is None:
        return f". There are questions inside the row: set questions.columns.rows = {inside}"
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
            yield Record(f"sandbox [{split}], row", number, split, row)


def _settle(
    source: str, pools: Mapping[str | None, Pool], labels_found: Iterable[str | None], bad_rows: BadRows
) -> None:
    """What shows only after the last row: spellings of one question, and a split with nothing in it."""
    for label, pool in pools.items():
        pool.settle()
        if len(pool):
            continue
        what = "questions" if label is None else f"rows of split {label!r}"
        splits = sorted(name for name in labels_found if name is not None)
        found = f"splits {', '.join(splits)}" if splits and label is not None else "none"
        bad = "".join(f"; {example}" for example in bad_rows.examples[:1])
        raise ValueError(
            f"questions: expected {what} in {source}, found {found} ({bad_rows.count} bad rows{bad})"
        )


def _written_columns(questions: Questions) -> set[str]:
    """Optional columns that somebody wrote down: a preset's may be missing, these may not."""
    known = dataset(questions.preset)["columns"]
    return {
        name
        for name in ("id", "documents")
        if as_paths(getattr(questions.columns, name)) not in ((), as_paths(known.get(name)))
    }


def _has(values: Mapping[str, Any], word: Paths) -> bool:
    return any(find(values, path) is not MISSING for path in as_paths(word))
