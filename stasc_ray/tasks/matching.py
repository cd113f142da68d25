"""The rewards that compare words: in_accuracy, exact_match, f1. Pure."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from stasc_ray.tasks.answer_words import (
    CHINESE_DENIALS,
    CHINESE_YES_NO,
    KOREAN_COPULAS,
    KOREAN_PARTICLES,
    OR,
    one_of,
)
from stasc_ray.tasks.words import ARTICLES, UNSPACED, normalize, spaced, spellings, units, word_count

__all__ = ["exact_match", "f1", "in_accuracy", "normalize", "one_of_several", "word_count"]

_FUNCTION_WORDS = ARTICLES | frozenset(
    """
    i it he she we they you me him us them who what which that this there here is am are
    was were be been do does did
    has have had can may might will would must and or but not no yes so
    if then as at by for from in into of off on out
    over to up with all any some now true false
    """.split()  # noqa: SIM905 (one word a line would hide the rest of the module)
)
_CASELESS = frozenset({"yes", "no", "true", "false"})
_BOOLEANS = {"true": ("yes", "true"), "false": ("no", "false"), "yes": ("yes", "true"), "no": ("no", "false")}
"""What says the same as a reference that is one of these words."""
_CLAUSE_END = r"(?=\s*(?:$|[.,;:!?)\]}\"'*]))"
_REASON = (
    r"(?=\s*(?:$|[.,;:!?)\]}\"'*\u2013\u2014]|--?\s)|\s+(?:because|since|as|it|it's|they|he|she|this|that|these|those|"
    r"there|the|i|we|you|but|due)\b)"
)
_DENIED = re.compile(
    one_of("not never neither nor rather_than instead_of except unlike isn't wasn't nicht pas no_es non")
    + r"\s+(?:(?:in|the|a|an|it|is|by|at|on)\s+)*$"
)
_ALTERNATIVE = re.compile(rf"\s*(?:{OR})\s*|\s*/\s*")
_LISTED = re.compile(
    r",(?=\s|[^\W\d])\s*(?:(?:and|und|et|y|e|&)\s)?|;\s*|\s(?:and|&|und|et)\s|\u3001", re.IGNORECASE
)
_DISJUNCTION = r"\s*(?:or|and|/)\s*"


def in_accuracy(answer: str, references: Sequence[str]) -> float:
    """1.0 if the answer contains a reference as whole words, else 0.0 (the paper's reward).

    A reference that as a word of running text proves nothing ("no", "IT", "A", "%", "Vitamin A", "C++") must
    be stated: spelled as given, and at the end of a clause where its spelling alone could be chance.
    """
    return float(any(_contains(answer, reference) for reference in references))


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 if answer and a reference are equal after normalization, else 0.0 (SQuAD, arXiv 1606.05250)."""
    return float(any(_equals(answer, reference) for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """F1 of the words after normalization, for the best reference (SQuAD, arXiv 1606.05250).

    Characters count as words in Chinese, Japanese, Korean, Thai and the like.
    """
    return max((_f1(answer, reference) for reference in references), default=0.0)


def one_of_several(answer: str, references: Sequence[str]) -> bool:
    """Whether a final answer only lists a reference among others, or denies it, and so does not state it.

    "Paris or Rome", "Paris, Rome, Berlin" and "not Paris" do not state Paris. A list of which every item is a
    reference states them, and so does one that is itself a reference ("red, white and blue").
    """
    answer = answer.strip()
    matched = [reference for reference in references if _contains(answer, reference)]
    if not matched or any(_equals(answer, reference) for reference in matched):
        return False
    return all(_among_others(answer, reference, references) for reference in matched)


def _among_others(answer: str, reference: str, references: Sequence[str]) -> bool:
    pattern = re.compile(r"[\W_]*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", reference))), re.IGNORECASE)
    found = [
        match
        for match in pattern.finditer(answer)
        if not _DENIED.search(answer[max(0, match.start() - 60) : match.start()])
    ]
    if not found and pattern.search(answer):
        return True
    masked = pattern.sub("\u00d8", answer)  # a comma within the reference parts nothing
    if reference.strip().casefold() in _CASELESS:
        other = "(?:yes|no|true|false)"
        both = rf"\u00d8{_DISJUNCTION}{other}|{other}{_DISJUNCTION}\u00d8"
        return re.search(both, masked, re.IGNORECASE) is not None
    alternatives = [part for part in _ALTERNATIVE.split(masked) if part.strip(" .")]
    items = [item for part in alternatives for item in _LISTED.split(part) if item.strip(" .")]
    if len(alternatives) < 2 and len(items) < 3:
        return False
    others = [item for item in items if "\u00d8" not in item]
    return not all(any(_contains(item, other) for other in references) for item in others)


def _equals(answer: str, reference: str) -> bool:
    wanted = spellings(reference)
    if len(wanted[0]) < 2 and not wanted[0].isdigit():
        return _bare(answer) == _bare(reference) != ""  # "C++" and "C#" normalize to "c", "%" to nothing
    given = spellings(answer)
    if not set(wanted).isdisjoint(given):
        return True
    if wanted[0] in _BOOLEANS:
        return given[0] in _BOOLEANS[wanted[0]]
    return _same_number(given[0], wanted[0])


def _same_number(given: str, wanted: str) -> bool:
    """1.50 is 1.5."""
    if not ("." in given or "." in wanted):
        return False
    pattern = r"-?\d*\.?\d+"
    return bool(re.fullmatch(pattern, given) and re.fullmatch(pattern, wanted)) and _trimmed(
        given
    ) == _trimmed(wanted)


def _trimmed(number: str) -> str:
    whole, _, decimals = number.partition(".")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    return f"{sign}{digits.lstrip('0')}.{decimals.rstrip('0')}"


def _bare(text: str) -> str:
    return text.casefold().strip(" \t\n.,;:!?\"'*()[]`\u3002\uff0c") or text.strip()


def _contains(answer: str, reference: str) -> bool:
    if _equals(answer, reference):
        return True
    wanted = spellings(reference)
    form = wanted[0]
    if UNSPACED.match(form):
        return _unspaced_contains(answer, form)
    words = form.split()
    if form in _BOOLEANS:
        return any(_says(answer, word) for word in _BOOLEANS[form])
    texts = [f" {text} " for text in spellings(answer)]
    if not form.isascii() and any(_attached(form).search(text) for text in texts):
        return True
    of_chance = (len(form) < 2 and not form.isdigit()) or words[-1] in ARTICLES
    if of_chance or _FUNCTION_WORDS.issuperset(words):
        return _states(spaced(answer), reference.strip())
    if any(f" {form} " in text for form in wanted for text in texts):
        return True
    return (
        form[-1].isdigit() and "." in texts[0] and any(_same_number(word, form) for word in texts[0].split())
    )


@lru_cache(maxsize=1024)
def _attached(form: str) -> re.Pattern[str]:
    """A word with what Korean hangs on it, or Arabic and Hebrew put before it."""
    behind = before = ""
    if re.search("[\uac00-\ud7a3]$", form):
        # of one syllable, most of these would make another word: \uac00 and \uac00\uc744
        last = KOREAN_COPULAS if len(form) == 1 else [*KOREAN_PARTICLES, *KOREAN_COPULAS]
        behind = f"(?:{'|'.join(last)})"
        if len(form) > 1:
            behind += f"(?:{'|'.join(KOREAN_PARTICLES)})?"
    elif re.match("[\u0621-\u064a]{4}", form):
        before = "[\u0648\u0641]?[\u0628\u0644\u0643]?"
    elif re.match("[\u05d0-\u05ea]{4}", form):
        before = "[\u05d5]?[\u05d1\u05dc\u05de\u05e9\u05db\u05d4]?"
    return re.compile(f" {before}{re.escape(form)}{behind} ")


def _unspaced_contains(answer: str, form: str) -> bool:
    """Whether a text in a script without spaces holds a reference that no sign before it denies."""
    text = f" {spellings(answer)[0]} "
    if form in CHINESE_YES_NO:
        return _chinese_says(answer, form)
    start = text.find(f" {form} ")
    while start >= 0:
        if start == 0 or text[start - 1] not in CHINESE_DENIALS:
            return True
        start = text.find(f" {form} ", start + 1)
    return False


def _chinese_says(answer: str, sign: str) -> bool:
    """Whether one sign is a clause of its own (\u662f\u7684) or what the answer is said to be."""
    end = r"(?=\s*(?:\u7684|\u554a|\u5440)?\s*(?:$|[.,;:!?)\"]))"
    pattern = rf"(?:^|[.,;:!?(\"]|\u7b54\u6848(?:\u662f|\u4e3a|\u70ba)?)\s*{sign}{end}"
    return re.search(pattern, answer.translate(_MARKS_TO_ASCII), re.MULTILINE) is not None


_MARKS_TO_ASCII = str.maketrans(
    "\u3002\u3001\uff0c\uff1a\uff1b\uff01\uff1f\uff08\uff09\u201c\u201d", '.,,:;!?()""'
)


def _says(answer: str, word: str) -> bool:
    """Whether the answer says yes or no: at its head before a reason or a dash, or at the end of a clause."""
    answer = re.sub(r"[\s*_#\"'`>(]*", "", answer, count=1) if answer[:1] in " \n*_#\"'`>(" else answer
    return bool(re.match(rf"{word}(?![\w-]){_REASON}", answer, re.IGNORECASE)) or _states(
        spaced(answer), word
    )


def _states(answer: str, reference: str) -> bool:
    """Whether the answer says this reference, whose words taken alone prove nothing."""
    *head, last = reference.split() or [""]
    if not last:
        return False
    if head and last.casefold() in ARTICLES:  # "vitamin A", not "vitamin a day"
        pattern = rf"(?i:{_spelled(head)})\s+{last.capitalize()}"
    elif head:  # "The Who"
        pattern = _spelled([*head, last])
    elif re.fullmatch(r"(?:[A-Z]\.?){2,}", last):  # "US", "U.S."
        pattern = r"\.?".join(last.replace(".", "")) + r"\.?"
    elif (len(last) < 4 and not last.isalpha()) or (len(last) == 1 and last not in "AI" and last.isupper()):
        # "C++", "C"
        pattern = re.escape(last) + ("" if any(map(str.isalpha, last)) else _CLAUSE_END)
    else:  # "no", "It", "A"
        caseless = last.casefold() in _CASELESS or last.islower()
        pattern = f"(?{'i' if caseless else ''}:{re.escape(last)})" + _CLAUSE_END
    return re.search(rf"(?<![\w+#]){pattern}(?![\w+#])", answer, re.MULTILINE) is not None


def _spelled(words: Sequence[str]) -> str:
    return r"\s+".join(map(re.escape, words))


def _f1(answer: str, reference: str) -> float:
    if _equals(answer, reference):
        return 1.0
    return max(_overlap(text, wanted) for text in spellings(answer) for wanted in spellings(reference))


def _overlap(text: str, wanted: str) -> float:
    if not text or (len(wanted) < 2 and not wanted.isdigit() and not UNSPACED.match(wanted)):
        return 0.0
    given, expected = units(text), units(wanted)
    shared = sum((Counter(given) & Counter(expected)).values())
    return 2 * shared / (len(given) + len(expected))
