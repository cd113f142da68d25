"""One raw row of a source, as the readers give it. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SPLIT_COLUMN = "split"


class Record(NamedTuple):
    """One raw row, or the reason why a row could not be read."""

    where: str
    """File and what `number` counts: `a.jsonl, line`."""
    number: int
    """Counted from 1."""
    label: str | None
    """Split of a Hub dataset, or the value of the file's `split` column; None without one."""
    values: Mapping[str, Any]
    """Column name to value; empty when the row could not be read."""
    problem: str | None = None
    """Why the row could not be read."""

    @property
    def place(self) -> str:
        """Where the row stands, for messages: `a.jsonl, line 3`."""
        return f"{self.where} {self.number}"


def record(where: str, number: int, values: Mapping[str, Any]) -> Record:
    """A row of a file, whose `split` column says its split."""
    label = values.get(SPLIT_COLUMN)
    return Record(where, number, None if label is None else str(label), values)


def unreadable(where: str, number: int, problem: str) -> Record:
    """A row that could not be read."""
    return Record(where, number, None, {}, f"unreadable: {problem}")
