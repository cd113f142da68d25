"""Whether a final answer states a reference, or only lists it among others or denies it. Pure."""

import re
from collections.abc import Sequence
from functools import lru_cache

from stasc_ray.tasks.answer_words import (
    CHINESE_YES_NO,
    LEAD_IN,
    NOT,
    NOT_AFTER,
    OR,
    OTHER_OR,
    one_of,
)
from stasc_ray.tasks.matching import BOOLEANS, MARKS_TO_ASCII_BUT_LISTS, contains, equals
from stasc_ray.tasks.words import (
    ARTICLES,
    spellings,
    unaccented,
)

_FUNCTION_WORDS = ARTICLES | frozenset(
    """
    i it he she we they you me him us them who what which that this there here is am are
    was were be been do does did
    has have had can may might will would must and or but not no yes so
    if then as at by for from in into of off on out
    over to up with all any some now true false
    """.split()  # noqa: SIM905 (one word a line would hide the rest of the module)
)
_FILLERS = one_of(
    "in the a an it is was by at on be that this think believe know sure if whether answer correct really "
    "called es est ist é è"
)
_DENIED = re.compile(rf"(?:{NOT}|\bdoubt)(?:\s*(?:{_FILLERS}|[是在叫为為会會]|可能))*\s*$")
_DENIED_AFTER = re.compile(
    r"\s*(?:(?:is|was|are|were|would\s+be|seems)\s+(?:\w+ly\s+)?(?:not|wrong|incorrect|false)\b"
    rf"|(?:is|was|are|were|ca)n't\b|cannot\b)|{NOT_AFTER}",
    re.IGNORECASE,
)
_O = "\u00d8"
"""Stands for a reference within an answer, so that its own commas and its `and` part nothing."""
_GUESS = one_of("maybe perhaps possibly probably")
_ALTERNATIVE = re.compile(
    rf"{OR}|{OTHER_OR}|(?<=\s)o(?=\s)|/(?![a-z]\b)|[|\n\t]|\(\s*(?={_GUESS})|\?(?=\s*\w)"
    rf"|(?<={_O})か(?=\w)|か(?={_O})"
)
_AND = re.compile(
    rf"{one_of('and und et og och и ve và as_well_as along_with')}|(?<=\s)[ey](?=\s)|[&;、]|\s\+\s"
    rf"|(?<={_O})[和与與及と](?=\w)|[和与與及と](?={_O})|(?<={_O})[와과](?=\s)"
)
_COMMA = re.compile(r",(?=\s|[^\W\d])|\s(?:--?|[\u2013\u2014])\s")
_DATE_COMMA = re.compile(r"\b(\d\d? [^\W\d_]+|[^\W\d_]+ \d\d?),(?= ?\d{4}\b)")
_NUMBERS_ONLY = re.compile(r"\W*(?:[\d.,]+|\u00d8)(?:\s+(?:[\d.,]+|\u00d8))+\W*")
_RANGE = re.compile(r"\d\s*(?:[-~\u2013\u2014]|to\b)\s*\u00d8|\u00d8\s*(?:[-~\u2013\u2014]|to\b)\s*\d")
_ISO_DATE = re.compile(r"\b\d{4}-\d\d-\d\d\b")
_HEDGE = re.compile(rf"{_GUESS}|{one_of('could may might also or either')}")
_CLAUSE_HEADS = frozenset("it he she they this that which who is are was were has had because".split())  # noqa: SIM905
_TOPIC = re.compile("[はがでに]$")  # what Japanese puts before the answer
_SHORT = 3


def one_of_several(answer: str, references: Sequence[str]) -> bool:
    """Whether a final answer only lists a reference among others, or denies it, and so does not state it.

    "Paris or Rome", "Paris and Rome", "Paris; Rome" and "not Paris" do not state Paris. After one comma or
    dash, as in "Springfield, Illinois", may stand what tells more about a name, but no number beside a number
    and no further guess ("maybe Rome"); what follows the comma is not stated ("Rome, Paris"), except after a
    lead-in ("In short, Paris"). A list of which every item is a reference states them; so does one that is
    itself a reference ("red, white and blue").
    """
    answer = re.sub(r"[^\S\n\t]+", " ", answer.strip())
    matched = [reference for reference in references if contains(answer, reference)]
    if not matched or any(equals(answer, reference) for reference in matched):
        return False
    if any(spellings(reference)[0] in {*BOOLEANS, *CHINESE_YES_NO} for reference in matched):
        return False  # `contains` has weighed the opposite
    text = unaccented(answer.replace("\u2019", "'").translate(MARKS_TO_ASCII_BUT_LISTS))
    text = _DATE_COMMA.sub(r"\1", text)
    found = [match for reference in matched for match in _mention(reference).finditer(text)]
    if found and all(map(_is_denied, found)):
        return True
    masked = text
    for reference in sorted(matched, key=len, reverse=True):
        masked = _mention(reference).sub(_O, masked)
    numeric = any(match[0].strip().isdigit() for match in found)
    if numeric and (
        _NUMBERS_ONLY.fullmatch(masked) or (_RANGE.search(masked) and not _ISO_DATE.search(text))
    ):
        return True
    named = bool(found) and not found[0][0][:1].islower()
    return _lists_others(masked, references, named=named)


@lru_cache(maxsize=1024)
def _mention(reference: str) -> re.Pattern[str]:
    parts = re.findall(r"\w+|[^\w\s]", unaccented(reference))
    words = (
        "(?:and|&)" if part.lower() in ("and", "&") else re.escape(part) for part in parts if part != ","
    )
    return re.compile(r"[\W_]*".join(words) or "(?!)", re.IGNORECASE)


def _is_denied(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 60) : match.start()]
    return bool(_DENIED.search(before) or _DENIED_AFTER.match(match.string, match.end()))


def _lists_others(masked: str, references: Sequence[str], *, named: bool) -> bool:
    """Whether beside the references (masked) other answers stand, by any of the ways to list them.

    Args:
        named: the reference is written as a name or number, so that words in small letters are none.
    """

    def other(item: str) -> bool:
        return _O not in item and not any(contains(item, reference) for reference in references)

    def rival(item: str) -> bool:
        return other(item) and not _tells_more(item, named=named)

    if re.match(r"\W*1[.)]", masked) and re.search(r"\s\(?2[.)]\s", masked):  # a numbered list in one line
        masked = re.sub(r"(?:^|\s)\(?\d\d?[.)](?=\s)", "|", masked)
    if any(map(other, _parted(_ALTERNATIVE, masked))) or any(map(rival, _parted(_AND, masked))):
        return True
    items = _parted(_COMMA, masked)
    if len(items) > 2:
        return any(other(item) and not _denies(item) for item in items)
    if len(items) == 2:
        return _second_guess(*items) if not other(items[0]) else _second_counts_not(items[0])
    sentences = _parted(re.compile(r"(?<=[^\W\d_]{4})[.!]\s+|\u3002"), masked)
    return any(other(item) and _is_bare(item) for item in sentences)


def _parted(separator: re.Pattern[str], text: str) -> list[str]:
    return [part.strip() for part in separator.split(text) if re.search(r"\w", part)]


def _denies(item: str) -> bool:
    return bool(re.match(rf"\W*(?:{_FILLERS}\s*)*(?:{NOT})", item) or re.search(rf"(?:{NOT})\W*$", item))


def _tells_more(item: str, *, named: bool) -> bool:
    """Whether what stands behind an `and` or a semicolon is a clause ("and it is large"), not an answer."""
    words = item.split()
    if _denies(item) or _TOPIC.search(item):
        return True
    if _HEDGE.search(item) or not words[0][:1].islower():
        return False
    return words[0] in _CLAUSE_HEADS or (named and len(words) >= _SHORT and words[0] not in ARTICLES)


def _second_guess(first: str, second: str) -> bool:
    return bool(
        re.match(rf"(?:but\s+)?{_HEDGE.pattern}", second)
        or (re.search(rf"{_O}\W*$", first) and _both_numbers(first, second))
    )


def _both_numbers(first: str, second: str) -> bool:
    return second[:1].isdigit() and not re.search(r"[^\W\d_\u00d8]", first)


def _second_counts_not(first: str) -> bool:
    return not (_denies(first) or re.match(LEAD_IN, first) or _TOPIC.search(first))


def _is_bare(item: str) -> bool:
    words = re.findall(r"\w+", item.casefold())
    return len(words) <= _SHORT and _FUNCTION_WORDS.isdisjoint(words)
