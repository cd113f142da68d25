"""The rewards that compare words: in_accuracy, exact_match, f1. Pure."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from stasc_ray.tasks.answer_words import (
    CHINESE_DENIALS,
    CHINESE_YES_NO,
    KOREAN_COPULAS,
    KOREAN_PARTICLES,
)
from stasc_ray.tasks.words import (
    ARTICLES,
    UNSPACED,
    in_one_piece,
    normalize,
    spaced,
    spellings,
    units,
    word_count,
)

__all__ = ["exact_match", "f1", "in_accuracy", "normalize", "word_count"]

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
BOOLEANS = {"true": ("yes", "true"), "false": ("no", "false"), "yes": ("yes", "true"), "no": ("no", "false")}
"""What says the same as a reference that is one of these words."""
_CLAUSE_END = r"(?=\s*(?:$|[.,;:!?)\]}\"'*<]))"
_REASON = (
    r"(?=\s*(?:$|[.,;:!?()\]}\"'*<\u2013\u2014]|--?\s)|\s+(?:because|since|as|it|it's|they|he|she|this|that|these|"
    r"those|there|the|i|we|you|but|due|indeed|of\s+course|in|absolutely|definitely|certainly)\b(?!-))"
)
_OPPOSED = re.compile(
    r"\b(?:(yes|true)|no|false)\b(?:[\s,;:/|&\u2013\u2014-]|\b(?:and|or|but|also|maybe|perhaps|then|wait)\b)+"
    rf"(?(1)(?:no|false)|(?:yes|true))\b{_CLAUSE_END}",
    re.IGNORECASE,
)
_NOT_SAID = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot)|n['\u2019]t)\s+(?:\w+\s+)?(?:yes|no|true|false)\b", re.IGNORECASE
)
_NUMERO = re.compile(r"(?:\bNo|\A\W*no)\.\s*(?=\d)")
_TAGS = re.compile(r"</?[A-Za-z]\w*>")
_SURELY_NOT = re.compile(
    rf"\W*(?:definitely|certainly|absolutely|of\s+course|surely)\s+not{_CLAUSE_END}", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def in_accuracy(answer: str, references: Sequence[str]) -> float:
    """1.0 if the answer contains a reference as whole words, else 0.0 (the paper's reward).

    A reference that as a word of running text proves nothing ("no", "IT", "A", "%", "Vitamin A", "C++") must
    be stated: spelled as given, and at the end of a clause where its spelling alone could be chance.
    """
    return float(any(contains(answer, reference) for reference in references))


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 if answer and a reference are equal after normalization, else 0.0 (SQuAD, arXiv 1606.05250)."""
    return float(any(equals(answer, reference) for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """F1 of the words after normalization, for the best reference (SQuAD, arXiv 1606.05250).

    Characters count as words in Chinese, Japanese, Korean, Thai and the like.
    """
    return max((_f1(answer, reference) for reference in references), default=0.0)


def equals(answer: str, reference: str) -> bool:
    wanted = in_one_piece(reference)
    if len(wanted[0]) < 2 and not wanted[0].isdigit():
        return _bare(answer) == _bare(reference) != ""  # "C++" and "C#" normalize to "c", "%" to nothing
    given = spellings(answer)
    if not set(wanted).isdisjoint(given):
        return _same_signs(answer, reference)
    if wanted[0] in BOOLEANS:
        return given[0] in BOOLEANS[wanted[0]]
    return _same_number(given[0], wanted[0])


_COMPARED = re.compile(
    r"[<>\u2264\u2265\u2260\u00b1\u221a]=?(?=\s*[$\u20ac\u00a3\u00a5-]?\.?\d)|(?<=\w)\s*[<>\u2264\u2265\u2260]=?(?=\s*\w)"
)
_UNITS = re.compile(r"[%\u2030\u00b0$\u20ac\u00a3\u00a5]")
_BETWEEN_DIGITS = re.compile(
    r"(?<=\d)\s*[:/^*+\u00d7\u00f7\u2012\u2013\u2010\u2011-]\s*(?=\d)|(?<=\d)\s+(?=\d)"
)


def _same_signs(answer: str, reference: str) -> bool:
    """Whether signs that `normalize` drops say the same: <5 is not 5, nor 1:2 1/2. Of units (5%, $5, 5) one
    may be missing, but $5 is not 5%.
    """
    given, wanted = (_signs(_TAGS.sub("", text)) for text in (answer, reference))
    return given[0] == wanted[0] and (given[1] == wanted[1] or not (given[1] and wanted[1]))


@lru_cache(maxsize=4096)
def _signs(text: str) -> tuple[list[str], set[str]]:
    if text.isalpha():
        return [], set()
    compared = [
        sign.strip().replace("<=", "\u2264").replace(">=", "\u2265") for sign in _COMPARED.findall(text)
    ]
    between = [re.sub("[\u2010-\u2013]", "-", sign.strip()) for sign in _BETWEEN_DIGITS.findall(text)]
    return compared + between, set(_UNITS.findall(text))


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


def contains(answer: str, reference: str) -> bool:
    if equals(answer, reference):
        return True
    wanted = in_one_piece(reference)
    form = wanted[0]
    if form in CHINESE_YES_NO:
        return _chinese_says(answer, form)
    if form in BOOLEANS:
        return _verdict(answer) in BOOLEANS[form]
    words = form.split()
    of_chance = (len(form) < 2 and not form.isdigit()) or words[-1] in ARTICLES
    if not UNSPACED.match(form) and (of_chance or _FUNCTION_WORDS.issuperset(words)):
        if len(form) == 1 and not form.isascii() and _attached(form).search(f" {spellings(answer)[0]} "):
            return True
        return _states(spaced(answer), reference.strip())
    texts = [f" {text} " for text in spellings(answer)]
    times = max(text.count(f" {spelling} ") for spelling in wanted for text in texts)
    if not form.isascii():
        times = max(times, *(len(_attached(form).findall(text)) for text in texts))
    if times:
        may_deny = not answer.isascii() or "non-" in answer.lower()
        return not may_deny or times > len(_denying(form).findall(_composed(answer)))
    return (
        form[-1:].isdigit() and "." in texts[0] and any(_same_number(word, form) for word in texts[0].split())
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
    return re.compile(f"(?<= ){before}{re.escape(form)}{behind}(?= )")


@lru_cache(maxsize=1024)
def _denying(form: str) -> re.Pattern[str]:
    """Finds a word that is denied, where a script's own way to deny would leave it a word of the text.

    A number before a sign for ten thousand (100\u4e07) is another number.
    """
    word = rf"(?<![\d.,a-z]){_SPACE.join(map(re.escape, form.split()))}(?![\da-z\u0430-\u044f\u0621-\u064a])"
    more = rf"|{word}\s*[\u4e07\u842c\u4ebf\u5104\u5146\u5343\u767e\ub9cc\uc5b5]" if form.isdigit() else ""
    return re.compile(rf"(?:{_DENIAL_BEFORE}){word}|{word}(?:{_DENIAL_BEHIND}){more}")


_SPACE = r"\s*"
_DENIAL_BEFORE = (
    rf"(?:(?<![无無莫])非|[{CHINESE_DENIALS.replace('非', '')}])\s*(?:(?:[是在有叫为為会會]|可能)\s*)*"
    r"|(?<!\w)(?:non[-\u2010\u2011]|не\s+|ليس\w*\s+|غير\s+)|ไม่ใช่\s*"
)
_DENIAL_BEHIND = r"\s*(?:では|じゃ)(?:な[いくか]|あり)|\s*でな[いくか]|[은는이가도]?\s*아[니닙닌닐]"


def _composed(answer: str) -> str:
    return unicodedata.normalize("NFKC", answer).casefold()


def _chinese_says(answer: str, sign: str) -> bool:
    """Whether one sign is a clause of its own (\u662f\u7684) or what the answer is said to be."""
    end = r"(?=\s*(?:\u7684|\u554a|\u5440)?\s*(?:$|[.,;:!?)\"]))"
    pattern = rf"(?:^|[.,;:!?(\"]|\u7b54\u6848(?:\u662f|\u4e3a|\u70ba)?)\s*{sign}{end}"
    return re.search(pattern, answer.translate(_MARKS_TO_ASCII), re.MULTILINE) is not None


MARKS_TO_ASCII_BUT_LISTS = str.maketrans("\u060c\uff0c\uff1b\uff1f\uff01\uff1a\uff5c\u061b", ",,;?!:|;")
_MARKS_TO_ASCII = str.maketrans(
    "\u3002\u3001\uff0c\uff1a\uff1b\uff01\uff1f\uff08\uff09\u201c\u201d", '.,,:;!?()""'
)


def _verdict(answer: str) -> str | None:
    """The one of yes and no (if neither, of true and false) that the answer says last.

    A sentence that says both says neither, and so do "yes or no" and "not true". "No. 5" is a number.
    """
    text = spaced(_TAGS.sub(" ", answer))
    for unsaid in (_NUMERO, _OPPOSED, _NOT_SAID):
        text = unsaid.sub(" ", text)
    for pair in (("yes", "no"), ("true", "false")):
        for sentence in reversed(_SENTENCE_END.split(text)):
            said = [word for word in pair if _says(sentence, word)]
            if said:
                return said[0] if len(said) == 1 else None
    return "no" if _SURELY_NOT.match(text) else None


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
    if equals(answer, reference):
        return 1.0
    return max(_overlap(text, wanted) for text in spellings(answer) for wanted in spellings(reference))


def _overlap(text: str, wanted: str) -> float:
    if not text or (len(wanted) < 2 and not wanted.isdigit() and not UNSPACED.match(wanted)):
        return 0.0
    given, expected = units(text), units(wanted)
    shared = sum((Counter(given) & Counter(expected)).values())
    return 2 * shared / (len(given) + len(expected))
