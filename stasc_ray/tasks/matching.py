"""Text normalization and the rewards that compare words: in_accuracy, exact_match, f1.

Reads texts, writes none: raw text is stored as generated, and normalized here and nowhere else. Pure.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})
_FUNCTION_WORDS = _ARTICLES | frozenset(
    """
    i it he she we they you me him us them who what which that this there here is am are
    was were be been do does did
    has have had can may might will would must and or but not no yes so
    if then as at by for from in into of off on out
    over to up with all any some now true false
    """.split()  # noqa: SIM905 (one word a line would hide the rest of the module)
)
_CASELESS = frozenset({"yes", "no", "true", "false"})
_LETTERS_FOLDED = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "\u0131": "i", "æ": "ae", "œ": "oe", "\u2019": "'", "\u2212": "-"}
)
_ACCENTS = re.compile("[\u0300-\u036f]")
_THOUSANDS = re.compile(r"(?<![\d,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_POSSESSIVE = re.compile(r"(?<=\w)'s\b")
# "end.Paris"; not "U.S.", "Ph.D."
_PARTING_PERIOD = re.compile(r"(?<=[^\W\d_]{3})\.(?=[^\W\d_])|(?<=[^\W\d_])\.(?=\d)")
_DROPPED = re.compile(r"'|\.(?!\d)")  # U.S. = US; the point in 3.14 stays
# Everything else that is no letter, digit or vowel sign parts words; a minus sign before a number stays.
_PARTING = re.compile(
    "[^\\w\\s.\\-\u0900-\u0963\u0966-\u0dff\u0e00-\u0eff\u1000-\u109f]|_|(?<=\\w)-|-(?!\\.?\\d)"
)
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Scripts that do not part words by spaces (Thai, Lao, Burmese, Khmer, Japanese, Chinese)."""
_CLAUSE_END = r"(?=\s*(?:$|[.,;:!?)\]}\"'*]))"


def normalize(text: str) -> str:
    """Normalize as SQuAD and NQ do (lower case, no punctuation, no articles, single spaces), without their
    accidents.

    Beyond them: accents fold (Beyonce = Beyoncé), thousands separators go (1,000 = 1000), a decimal point and
    a minus sign stay (3.14 is not 314), punctuation between words parts them (4-3 is not 43), a possessive 's
    goes, and an article that ends the text is a name (Vitamin A).
    """
    text = text.casefold()
    if not text.isascii():
        folded = unicodedata.normalize("NFKD", text.translate(_LETTERS_FOLDED))
        text = unicodedata.normalize("NFC", _ACCENTS.sub("", folded)).casefold()
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    text = _DROPPED.sub("", _PARTING_PERIOD.sub(" ", _POSSESSIVE.sub("", text)))
    words = _PARTING.sub(" ", text).split()
    return " ".join([*(word for word in words[:-1] if word not in _ARTICLES), *words[-1:]])


def in_accuracy(answer: str, references: Sequence[str]) -> float:
    """1.0 if the answer contains a reference as whole words, else 0.0 (the paper's reward).

    A reference that as a word of running text proves nothing ("no", "IT", "A", "%", "Vitamin A", "C++") must
    be stated: spelled as given, and at the end of a clause where its spelling alone could be chance.
    """
    text = normalize(answer)
    return float(any(_contains(answer, text, reference) for reference in references))


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 if answer and a reference are equal after normalization, else 0.0 (SQuAD, arXiv 1606.05250)."""
    text = normalize(answer)
    return float(any(_equals(answer, text, reference) for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """F1 of the words after normalization, for the best reference (SQuAD, arXiv 1606.05250)."""
    return max((_f1(answer, reference) for reference in references), default=0.0)


def _equals(answer: str, text: str, reference: str) -> bool:
    wanted = normalize(reference)
    if len(wanted) > 1 or wanted.isdigit():
        return wanted == text
    return _bare(answer) == _bare(reference) != ""  # "C++" and "C#" normalize to "c", "%" to nothing


def _bare(text: str) -> str:
    return text.casefold().strip(" \t\n.,;:!?\"'*()[]`") or text.strip()


def _contains(answer: str, text: str, reference: str) -> bool:
    wanted = normalize(reference)
    words = wanted.split()
    if _equals(answer, text, reference):
        return True
    if _UNSPACED.search(wanted):
        return wanted in text
    if (
        (len(wanted) < 2 and not wanted.isdigit())
        or words[-1] in _ARTICLES
        or _FUNCTION_WORDS.issuperset(words)
    ):
        return _states(answer, reference.strip())
    return f" {wanted} " in f" {text} "


def _states(answer: str, reference: str) -> bool:
    """Whether the answer says this reference, whose words taken alone prove nothing."""
    *head, last = reference.split() or [""]
    if not last:
        return False
    if head and last.casefold() in _ARTICLES:  # "vitamin A", not "vitamin a day"
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
    text, wanted = normalize(answer), normalize(reference)
    if _equals(answer, text, reference):
        return 1.0
    if not text or (len(wanted) < 2 and not wanted.isdigit()):
        return 0.0
    given, expected = text.split(), wanted.split()
    shared = sum((Counter(given) & Counter(expected)).values())
    return 2 * shared / (len(given) + len(expected))
