"""The questions of one place, each once: few bytes of memory a question, the rows in a temporary file.

A million questions are chosen from here in less than a gigabyte, however long their documents are.
"""

import marshal
import tempfile
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from stasc_ray.config import hashing
from stasc_ray.tasks.canonical import Row
from stasc_ray.tasks.loading.values import normalize

_MEMORY_BYTES = 1 << 23
"""Rows that wait in memory before they are written."""
_NONE: list[str] = []
"""One for all rows: a hundred megabytes less for a million. A row gets another list, never another item."""
_FIELDS = ("id", "question", "answers", "documents", "choices")


class Packed(NamedTuple):
    """A canonical row ready to be stored."""

    identity: str
    key: bytes
    """Equal for rows that are the same question but for case and white space."""
    spelling: int
    """Equal for rows whose question is the same text; in this process only."""
    content: bytes
    answers: list[str]


def _row(content: bytes) -> Row:
    return dict(zip(_FIELDS, marshal.loads(content), strict=True))


def pack(row: Row) -> Packed:
    """A row as bytes, with the key by which questions are the same: question, documents and choices."""
    spelling = row["question"] if row["question"].isascii() else unicodedata.normalize("NFC", row["question"])
    text = normalize(row["question"])
    if row["documents"] or row["choices"]:
        text = "\0".join([text, *row["documents"], "\1", *row["choices"]])
    return Packed(row["id"], hashing.digest(text, 16), hash(spelling), _content(row), row["answers"])


def _content(row: Row) -> bytes:
    return marshal.dumps((row["id"], row["question"], row["answers"], row["documents"], row["choices"]))


def agree(left: Iterable[str], right: Iterable[str]) -> bool:
    """Whether the references of one question are all among the other's."""
    one, other = ({normalize(answer) for answer in answers} for answers in (left, right))
    return one <= other or other <= one


class Pool:
    """Questions that are told apart by question, documents and choices.

    Of rows that are the same question the one with the smallest id stays and gets the references of all, so
    the order of the rows does not matter. Questions that differ in case or white space alone are the same if
    their references agree: `Cross BB x bb` and `Cross Bb x Bb` are not.
    """

    def __init__(self) -> None:
        self.duplicates = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (close() closes it)
        # what is not in the file yet, by slot
        self._waiting: dict[int, bytes] = {}
        self._waiting_bytes = 0
        self._ids: dict[str, int] = {}
        # per id: hash of the row, and its record's `where` (an index into _files) and `number`
        self._hashes, self._wheres, self._numbers = array("q"), array("I"), array("Q")
        self._files: dict[str, int] = {}
        self._slots: dict[bytes, int] = {}
        # further slots of a key: other spellings of its question
        self._variants: dict[bytes, list[int]] = {}
        self._settled = 0
        # per slot, which is a question until `settle` finds it again in another slot
        self._kept: list[str] = []
        self._spellings = array("q")
        self._offsets = array("Q")
        self._joined: set[int] = set()

    def __len__(self) -> int:
        return len(self._offsets) - self._settled

    def __iter__(self) -> Iterator[tuple[int, bytes, str]]:
        """Slot, key and id of every question."""
        for key, slot in self._slots.items():
            yield slot, key, self._kept[slot]
        for key, slots in self._variants.items():
            for slot in slots:
                yield slot, key, self._kept[slot]

    def spelling(self, slot: int) -> int:
        """`Packed.spelling` of a question."""
        return self._spellings[slot]

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def forget_keys(self) -> None:
        """Free what only choosing needs, before the last split's rows are read: a third of a gigabyte for a
        million questions. From then on there is `row` alone.
        """
        self._ids, self._slots, self._variants, self._kept = {}, {}, {}, []
        self._spellings = array("q")
        self._hashes, self._wheres, self._numbers = array("q"), array("I"), array("Q")

    def check(self, packed: Packed) -> None:
        """Refuse an id that another row has; a row that is repeated as a whole is a duplicate like others.

        Raises:
            ValueError: it says where the other row stands.
        """
        number = self._ids.get(packed.identity)
        if number is not None and self._hashes[number] != hash(packed.content):
            raise ValueError(
                f"repeated id: {packed.identity!r} belongs to another question at {self._place(number)}"
            )

    def add(self, packed: Packed, where: str, number: int) -> None:
        """Take a row that `check` let pass; `where` and `number` are its record's."""
        if packed.identity in self._ids:
            self.duplicates += 1
            return
        self._ids[packed.identity] = len(self._hashes)
        self._hashes.append(hash(packed.content))
        self._wheres.append(self._files.setdefault(where, len(self._files)))
        self._numbers.append(number)
        slot = self._slot(packed)
        if slot == len(self._kept):
            self._kept.append(packed.identity)
            self._spellings.append(packed.spelling)
            self._offsets.append(0)
            self._keep(slot, packed.content)
        else:
            self.duplicates += 1
            self._join(slot, packed.identity, packed.content, packed.answers)

    def _slot(self, packed: Packed) -> int:
        """The slot of a question of this spelling, or a new one."""
        new = len(self._kept)
        first = self._slots.setdefault(packed.key, new)
        if first == new or self._spellings[first] == packed.spelling:
            return first
        others = self._variants.setdefault(packed.key, [])
        found = next((slot for slot in others if self._spellings[slot] == packed.spelling), None)
        if found is None:
            others.append(new)
        return new if found is None else found

    def settle(self) -> None:
        """After the last row: spellings of a question whose references agree become one."""
        for key, others in self._variants.items():
            rows = {slot: self.row(slot) for slot in (self._slots[key], *others)}
            kept: list[int] = []
            # the one with most references first: a question joins another that has all of its own
            for slot, row in sorted(rows.items(), key=lambda item: (-len(item[1]["answers"]), item[1]["id"])):
                same = next((other for other in kept if agree(row["answers"], rows[other]["answers"])), None)
                if same is None:
                    kept.append(slot)
                    continue
                self.duplicates += 1
                self._settled += 1
                if row["id"] < self._kept[same]:
                    self._spellings[same] = self._spellings[slot]
                self._join(same, row["id"], _content(row), row["answers"])
            self._slots[key], self._variants[key] = kept[0], kept[1:]

    def row(self, slot: int) -> Row:
        """The row of a slot."""
        if slot in self._waiting:
            return _row(self._waiting[slot])
        self._file.seek(self._offsets[slot])
        row: Row = dict(zip(_FIELDS, marshal.load(self._file), strict=True))
        for name in ("documents", "choices"):
            row[name] = row[name] or _NONE
        return row

    def _join(self, slot: int, identity: str, content: bytes, references: list[str]) -> None:
        row = self.row(slot)
        answers = set(row["answers"]) | set(references)
        if len(answers) > min(len(row["answers"]), len(references)):
            self._joined.add(slot)
        if identity < row["id"]:
            row = _row(content)
            self._kept[slot] = identity
        if slot in self._joined:
            row["answers"] = sorted(answers)
        self._keep(slot, _content(row))

    def _keep(self, slot: int, content: bytes) -> None:
        self._waiting[slot] = content
        self._waiting_bytes += len(content)
        if self._waiting_bytes > _MEMORY_BYTES:
            self._file.seek(0, 2)
            for place, waiting in self._waiting.items():
                self._offsets[place] = self._file.tell()
                self._file.write(waiting)
            self._waiting, self._waiting_bytes = {}, 0

    def _place(self, number: int) -> str:
        where = next(name for name, index in self._files.items() if index == self._wheres[number])
        return f"{where} {self._numbers[number]}"
