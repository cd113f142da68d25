"""What a text says of each choice whose letter it names: it is the answer, it is not, or neither. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stasc_ray.tasks.answer_words import (
    ANSWER,
    CONCESSION,
    CONTRAST,
    DOUBTED,
    NO_DOUBT,
    NOT_AFTER,
    REASON,
    RIGHT,
    SO,
    one_of,
)

_SENTENCE_END = re.compile(r"[;\n]|[.!?\u3002](?=[\s\W]|$|[^\x00-\x7f])")
_OPENS = re.compile(rf"{REASON}|{SO}|{CONCESSION}|{CONTRAST}|{one_of('and')}|[,\u2014]|\((?=\w\w)")
_ALL_BUT = re.compile(rf"{one_of('everything anything nothing all none')}\s+$")
_NO_DOUBT = re.compile(f"{NO_DOUBT}|{one_of('as_well_as as_good_as')}")
_ADDED = re.compile(one_of("also too equally as_well"))
_CLAUSE = 200
"""Characters before a letter in which its clause may begin."""
_DOUBTED = re.compile(DOUBTED)
_DENIES_NEXT = re.compile(
    rf"(?:{DOUBTED}|{one_of('over than versus vs')})[\W_]*(?:{one_of('it is the')}\W*)*$"
)
_LESS = re.compile(rf"{one_of('over than')}\W*$|{one_of('prefer')}.*{one_of('to')}\W*$")
_DENIED_BEHIND = re.compile(rf"[\W_]{{0,4}}{one_of('no nope wrong incorrect false')}\W*(?:$|\n)|{NOT_AFTER}")
_WITHDRAWN = re.compile(r"\W*(?i:or\s+rather)\b")
_FAVOUR = one_of("only must remains fits works pick choose chose select it_is possible too equally as_good")
_AFFIRMED = re.compile(f"{ANSWER}|{RIGHT}|{_FAVOUR}")


@dataclass(frozen=True)
class Claim:
    """A choice's letter where it is named: `says` is 1 (it is the answer), -1 (it is not) or 0.

    `alone` is whether nothing else stands in its clause, or it is said to be right besides others.
    """

    start: int
    letter: str
    sentence: int
    says: int
    alone: bool


def claims(text: str, units: Sequence[Sequence[re.Match[str]]]) -> list[Claim]:
    """What is said of each named letter (group 1 of a match), in the text's order.

    Left out are letters in questions, in reasons, and in concessions before the point ("while A is near").

    Args:
        text: the text.
        units: the letters' matches; those in one list ("A, B or C") stand together and share what is said.
    """
    text = _NO_DOUBT.sub(lambda words: "_" * len(words[0]), text)
    ends = [end.end() for end in _SENTENCE_END.finditer(text)] + [len(text)]
    found: list[Claim] = []
    for at, unit in enumerate(units):
        start, stop = unit[0].start(), unit[-1].end()
        number = next((number for number, end in enumerate(ends) if start < end), len(ends) - 1)
        begin, end = ends[number - 1] if number else 0, max(ends[number], stop)
        previous = max(begin, units[at - 1][-1].end()) if at else begin
        following = min(end, stop + _CLAUSE, units[at + 1][0].start()) if at + 1 < len(units) else end
        opening, before = _before(text, max(begin, start - _CLAUSE), previous, start)
        after, closed = _after(text, stop, following)
        if text[end - 1 : end] == "?" or re.fullmatch(REASON, opening):
            continue
        says = _says(opening, before, after, text[stop : stop + 20])
        if says == 0 and re.fullmatch(CONCESSION, opening) and closed and not text[begin:previous].strip():
            continue
        added = _ADDED.search(after)
        says, alone = (0, True) if added and says > 0 else (says, not re.search(r"[^\W_]", before + after))
        found += [Claim(match.start(1), match[1].upper(), number, says, alone) for match in unit]
    return found


def _before(text: str, begin: int, previous: int, start: int) -> tuple[str, str]:
    """(the word that opens the clause, what stands between it, or the last letter, and this one)."""
    opening, since = "", begin
    for opens in _OPENS.finditer(text, begin, start):
        if not _ALL_BUT.search(text[max(begin, opens.start() - 15) : opens.start()]):
            opening, since = opens[0], opens.end()
    return opening, text[max(since, previous) : start]


def _after(text: str, stop: int, following: int) -> tuple[str, bool]:
    """(what follows in the same clause and is not said of the next letter, whether the clause ends there)."""
    opens = _OPENS.search(text, stop, following)
    after = text[stop : opens.start() if opens else following]
    if len(after.split()) > 4:  # "B: It is not loud there"
        after = re.split(r":(?=\s)", after)[0]
    more = not opens and text[following : following + 1].strip() and following < len(text)
    return _DENIES_NEXT.sub("", after) if more else after, opens is not None


def _says(opening: str, before: str, after: str, behind: str) -> int:
    if _DOUBTED.search(before) or _DOUBTED.search(after) or _LESS.search(before):
        return -1
    if _DENIED_BEHIND.match(behind) or _WITHDRAWN.match(behind):
        return -1
    affirmed = (
        _AFFIRMED.search(before) or _AFFIRMED.search(after) or re.fullmatch(f"{SO}|{CONTRAST}", opening)
    )
    return 1 if affirmed else 0


def left(said: Sequence[Claim], found: str) -> str | None:
    """The letter that was found if no claim speaks against it, else the one that is left, or None.

    Args:
        said: the claims of the text.
        found: the letter that the text seems to name, "" if it names none.
    """
    mine = [claim for claim in said if claim.letter == found]
    denied = {claim.letter for claim in said if claim.says < 0}
    named = {claim.letter for claim in said if claim.says >= 0}
    if not mine:
        return found or _only_one(named, denied, said)
    last = mine[-1]
    if last.says < 0:
        return _only_one(named, denied, said)
    against = [claim for claim in said if claim.letter != found and claim.says >= 0]
    if last.says > 0 or (last.alone and last.sentence == 0):
        against = [
            claim
            for claim in against
            if (claim.sentence >= last.sentence and (claim.says > 0 or claim.alone))
            or (claim.sentence == last.sentence and claim.start > last.start)
        ]
    return None if against else found


def _only_one(named: set[str], denied: set[str], said: Sequence[Claim]) -> str | None:
    """The one letter that is named and not denied, where others are denied or it is called right."""
    kept = named - denied
    if len(named) != 1 or len(kept) != 1:
        return None
    letter = kept.pop()
    return letter if denied or any(claim.says > 0 for claim in said) else None
