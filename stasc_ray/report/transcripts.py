"""Transcripts for the report: a few test questions with both answers, the changed words marked.

Reads few row groups of a committed rollouts folder (its mark names the Parquet files that count); writes
nothing.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc_ray.config import hashing
from stasc_ray.recipes.selection import Transition, transition
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text, finals, read_texts, roots
from stasc_ray.store import RunFolder
from stasc_ray.store.rows import text_columns

ORDER: tuple[Transition, ...] = ("i->c", "c->i", "i->i", "c->c")
"""The most telling first."""
COLUMNS = (
    *("id", "question", "answers", "split", "choices"),
    *text_columns("turn", "sample", "parent", "writer", "text", "answer_start", "reward"),
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
    """One question, its first answer and the last one that followed it."""

    id: str
    question: str
    references: tuple[str, ...]
    choices: tuple[str, ...]
    transition: str
    r1: float
    r2: float
    initial: tuple[Piece, ...]
    between: tuple[tuple[str, str], ...]
    """(turn, text) of what the model wrote between the two, and of a verdict that let the last one pass."""
    correction: tuple[Piece, ...]
    changed: bool
    changed_words: int


def committed(rollouts: Path) -> list[Path]:
    """The Parquet files that count; empty when the stage has not been committed."""
    run = RunFolder(rollouts.parent.parent)
    return run.files(rollouts) if run.committed(rollouts) else []


def choose(
    rollouts: Path,
    split: str,
    threshold: float,
    answers: Collection[str] = (ANSWER, CORRECTION),
    count: int = 20,
) -> list[Transcript]:
    """Pick `count` transcripts of `split`, an equal share of each transition if there are enough.

    Among the rows read (in file order, until every transition has four times its share or MAX_ROWS is
    reached), those
    whose id has the smallest hash: the same run always shows the same questions, and no one picked them.
    """
    found: dict[str, list[tuple[Mapping[str, Any], Text, list[Text]]]] = {name: [] for name in ORDER}
    share = count // len(ORDER)
    for row, last, after in _ends(committed(rollouts), split, rollouts.parent.name, answers):
        name = transition(last.root.reward or 0.0, last.reward or 0.0, threshold)
        found[name].append((row, last, after))
        if all(len(rows) >= 4 * share for rows in found.values()):
            break
    for rows in found.values():
        rows.sort(key=lambda end: hashing.sha256(end[0]["id"]))
    picked = {name: rows[:share] for name, rows in found.items()}
    for name, rows in found.items():  # a transition that is rare leaves its places to the others
        picked[name] = rows[: share + count - sum(len(chosen) for chosen in picked.values())]
    return [_transcript(name, *end) for name in ORDER for end in picked[name]]


def word_diff(left: str, right: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Mark the words that differ. A word is a run of letters and digits; other signs stand alone
    (`47+385=432`).
    """
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


def _ends(
    traces: Sequence[Path], split: str, writer: str, answers: Collection[str]
) -> Iterator[tuple[Mapping[str, Any], Text, list[Text]]]:
    """Rows of `split`, the answer that the model's first one ended in, and what follows it.

    Row groups of other splits are skipped by statistics.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    read = 0
    for path in traces:
        with pq.ParquetFile(path) as table:
            groups = [
                group
                for group in range(table.num_row_groups)
                if _may_hold(table.metadata.row_group(group), split)
            ]
            for batch in (
                table.iter_batches(batch_size=256, row_groups=groups, columns=list(COLUMNS)) if groups else ()
            ):
                read += batch.num_rows
                for row in batch.filter(pc.field("split") == split).to_pylist():
                    texts = read_texts(row)
                    first = next(iter(roots(texts, writer)), None)
                    if first:
                        last = next(finals(texts, first, answers))
                        yield row, last, [text for text in texts if text.parent is last]
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


def _transcript(name: str, row: Mapping[str, Any], last: Text, after: Sequence[Text]) -> Transcript:
    first, between = last.root, [*last.lineage[1:-1], *after]
    left, right = word_diff(_cut(first.answer), _cut(last.answer))
    counts = [
        sum(len(re.findall(r"\w+", piece.text)) for piece in side if piece.changed) for side in (left, right)
    ]
    return Transcript(
        id=row["id"],
        question=row["question"],
        references=tuple(row["answers"]),
        choices=tuple(row["choices"] or ()),
        transition=name,
        r1=first.reward or 0.0,
        r2=last.reward or 0.0,
        initial=(*_reasoning(first), *left),
        between=tuple((text.turn, _cut(text.text)) for text in between),
        correction=(*_reasoning(last), *right),
        changed=first.answer != last.answer,
        changed_words=max(counts),
    )


def _reasoning(text: Text) -> tuple[Piece, ...]:
    """What stands in the place of reasoning, which is not compared."""
    return (Piece(f"[{text.answer_start} characters of reasoning]\n", False),) if text.answer_start else ()


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} [... {len(text) - MAX_CHARACTERS} more characters]"
