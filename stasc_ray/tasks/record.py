"""One raw row of a source, as the readers give it. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SPLIT_COLUMN = "split"


class Record(NamedTuple):
    """One raw row, or the reason why a row could not be read."""

    place: str
    """File and 1-based line or row number, for messages."""
    label: str | None
    """Split of a Hub dataset, or the value of the file's `split` column; None without one."""
    values: Mapping[str, Any]
    """Column name to value; empty when the row could not be read."""
    problem: str | None = None
    """Why the row could not be read."""


def record(place: str, values: Mapping[str, Any]) -> Record:
    """A row of a file, whose `split` column says its split."""
    label = values.get(SPLIT_COLUMN)
    return Record(place, None if label is None else str(label), values)


def unreadable(place: str, problem: str) -> Record:
    """A row that could not be read."""
    return Record(place, None, {}, f"unreadable: {problem}")
