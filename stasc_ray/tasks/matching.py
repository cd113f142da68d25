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
    LEAD_IN,
    NOT,
    NOT_AFTER,
    OR,
    OTHER_OR,
    one_of,
)
from stasc_ray.tasks.words import (
    ARTICLES,
    UNSPACED,
    in_one_piece,
    normalize,
    spaced,
    spellings,
    unaccented,
    units,
    word_count,
)

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

    "Paris or Rome", "Paris and Rome", "Paris; Rome" and "not Paris" do not state Paris. After one comma or
    dash, as in "Springfield, Illinois", may stand what tells more about a name, but no number beside a number
    and no further guess ("maybe Rome"); what follows the comma is not stated ("Rome, Paris"), except after a
    lead-in ("In short, Paris"). A list of which every item is a reference states them; so does one that is
    itself a reference ("red, white and blue").
    """
    answer = re.sub(r"[^\S\n\t]+", " ", answer.strip())
    matched = [reference for reference in references if _contains(answer, reference)]
    if not matched or any(_equals(answer, reference) for reference in matched):
        return False
    if any(spellings(reference)[0] in {*_BOOLEANS, *CHINESE_YES_NO} for reference in matched):
        return False  # `_contains` has weighed the opposite
    text = unaccented(answer.replace("\u2019", "'").translate(_MARKS_TO_ASCII_BUT_LISTS))
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
        return _O not in item and not any(_contains(item, reference) for reference in references)

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


def _equals(answer: str, reference: str) -> bool:
    wanted = in_one_piece(reference)
    if len(wanted[0]) < 2 and not wanted[0].isdigit():
        return _bare(answer) == _bare(reference) != ""  # "C++" and "C#" normalize to "c", "%" to nothing
    given = spellings(answer)
    if not set(wanted).isdisjoint(given):
        return _same_signs(answer, reference)
    if wanted[0] in _BOOLEANS:
        return given[0] in _BOOLEANS[wanted[0]]
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


def _contains(answer: str, reference: str) -> bool:
    if _equals(answer, reference):
        return True
    wanted = in_one_piece(reference)
    form = wanted[0]
    if form in CHINESE_YES_NO:
        return _chinese_says(answer, form)
    if form in _BOOLEANS:
        return _verdict(answer) in _BOOLEANS[form]
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


_MARKS_TO_ASCII_BUT_LISTS = str.maketrans("\u060c\uff0c\uff1b\uff1f\uff01\uff1a\uff5c\u061b", ",,;?!:|;")
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
    if _equals(answer, reference):
        return 1.0
    return max(_overlap(text, wanted) for text in spellings(answer) for wanted in spellings(reference))


def _overlap(text: str, wanted: str) -> float:
    if not text or (len(wanted) < 2 and not wanted.isdigit() and not UNSPACED.match(wanted)):
        return 0.0
    given, expected = units(text), units(wanted)
    shared = sum((Counter(given) & Counter(expected)).values())
    return 2 * shared / (len(given) + len(expected))
