"""Transcripts for the report: a few test questions with both answers, the changed words marked.

Reads few row groups of a committed rollouts folder (its mark names the Parquet files that count); writes nothing.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc_ray.config import hashing
from stasc_ray.store import RunFolder

TRANSITIONS = ("i→c", "c→i", "i→i", "c→c")
COLUMNS = (
    "id",
    "question",
    "answers",
    "split",
    "choices",
    "initial_from",
    "initial",
    "initial_rewards",
    "corrections",
    "correction_rewards",
)
MAX_CHARACTERS = 4000  # of one answer; the page shows where it was cut
MAX_ROWS = 20_000  # rows read at most, whatever the size of the run
WORDS = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer; `changed` where the other answer has other words."""

    text: str
    changed: bool


@dataclass(frozen=True)
class Transcript:
    """One question, its first initial answer and the first correction of that."""

    id: str
    question: str
    references: tuple[str, ...]
    choices: tuple[str, ...]
    transition: str
    r1: float
    r2: float
    initial: tuple[Piece, ...]
    correction: tuple[Piece, ...]
    changed: bool
    changed_words: int


def committed(rollouts: Path) -> list[Path]:
    """The Parquet files that count; empty when the stage has not been committed."""
    run = RunFolder(rollouts.parent.parent)
    return run.files(rollouts) if run.committed(rollouts) else []


def transition(r1: float, r2: float, threshold: float) -> str:
    """Which of the four transitions a pair of rewards is; a reward of at least `threshold` counts as correct."""
    return f"{'c' if r1 >= threshold else 'i'}→{'c' if r2 >= threshold else 'i'}"


def choose(rollouts: Path, split: str, threshold: float, count: int = 20) -> list[Transcript]:
    """Pick `count` transcripts of `split`, an equal share of each transition where there are enough.

    Among the rows read (in file order, until every transition has four times its share or MAX_ROWS is reached), those
    whose id has the smallest hash: the same run always shows the same questions, and no one picked them.
    """
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in TRANSITIONS}
    share = count // len(TRANSITIONS)
    for row in _rows(committed(rollouts), split):
        found[transition(row["initial_rewards"][0], row["correction_rewards"][0][0], threshold)].append(row)
        if all(len(rows) >= 4 * share for rows in found.values()):
            break
    for rows in found.values():
        rows.sort(key=lambda row: hashing.sha256(row["id"]))
    picked = {name: rows[:share] for name, rows in found.items()}
    for name, rows in found.items():  # a transition that is rare leaves its places to the others
        picked[name] = rows[: share + count - sum(len(chosen) for chosen in picked.values())]
    return [_transcript(row, name) for name in TRANSITIONS for row in picked[name]]


def word_diff(left: str, right: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Mark the words that differ. A word is a run of letters and digits; other signs stand alone (`47+385=432`)."""
    a, b = WORDS.findall(left), WORDS.findall(right)
    marks_a, marks_b = [False] * len(a), [False] * len(b)
    for kind, a_start, a_end, b_start, b_end in difflib.SequenceMatcher(
        None, a, b, autojunk=False
    ).get_opcodes():
        if kind != "equal":
            marks_a[a_start:a_end] = [True] * (a_end - a_start)
            marks_b[b_start:b_end] = [True] * (b_end - b_start)
    return _pieces(a, marks_a), _pieces(b, marks_b)


def _pieces(words: Sequence[str], marks: list[bool]) -> tuple[Piece, ...]:
    """Join neighbours; a blank is marked only between two marked words."""
    for i, word in enumerate(words):
        if word.isspace():
            marks[i] = 0 < i < len(words) - 1 and marks[i - 1] and marks[i + 1]
    pieces: list[Piece] = []
    for word, changed in zip(words, marks, strict=True):
        if pieces and pieces[-1].changed == changed:
            pieces[-1] = Piece(pieces[-1].text + word, changed)
        else:
            pieces.append(Piece(word, changed))
    return tuple(pieces)


def _rows(files: Sequence[Path], split: str) -> Iterator[Mapping[str, Any]]:
    """Usable rows of `split`, the model's own answers only; other splits are skipped by row-group statistics."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    read = 0
    for path in files:
        with pq.ParquetFile(path) as table:
            names = [name for name in COLUMNS if name in table.schema_arrow.names]
            groups = [
                group
                for group in range(table.num_row_groups)
                if _may_hold(table.metadata.row_group(group), split)
            ]
            for batch in (
                table.iter_batches(batch_size=256, row_groups=groups, columns=names) if groups else ()
            ):
                read += batch.num_rows
                for row in batch.filter(pc.field("split") == split).to_pylist():
                    if _own(row, path) and row["initial"] and row["corrections"] and row["corrections"][0]:
                        yield row
                if read >= MAX_ROWS:
                    return


def _may_hold(group: Any, split: str) -> bool:
    for i in range(group.num_columns):
        column = group.column(i)
        if (
            column.path_in_schema == "split"
            and column.statistics is not None
            and column.statistics.has_min_max
        ):
            return column.statistics.min <= split <= column.statistics.max
    return True


def _own(row: Mapping[str, Any], path: Path) -> bool:
    """Whether the model answered itself; in the base model's folder every row is its own."""
    return row.get("initial_from") != "base" or path.parent.parent.name == "base"


def _transcript(row: Mapping[str, Any], name: str) -> Transcript:
    initial, correction = row["initial"][0], row["corrections"][0][0]
    left, right = word_diff(_cut(initial), _cut(correction))
    counts = [
        sum(len(re.findall(r"\w+", piece.text)) for piece in side if piece.changed) for side in (left, right)
    ]
    return Transcript(
        id=row["id"], question=row["question"], references=tuple(row["answers"]),
        choices=tuple(row.get("choices") or ()),
        transition=name, r1=row["initial_rewards"][0], r2=row["correction_rewards"][0][0],
        initial=left, correction=right, changed=initial != correction, changed_words=max(counts),
    )  # fmt: skip


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} [... {len(text) - MAX_CHARACTERS} more characters]"
