"""Which choice a text is, or mentions: compared exactly, then with symbols kept, then by words. Pure."""

import re
from collections.abc import Sequence
from functools import lru_cache
from string import ascii_uppercase

from stasc_ray.tasks.answer_words import NOT, one_of
from stasc_ray.tasks.math.signs import clean
from stasc_ray.tasks.math.values import number

_OWN_LETTER = re.compile(
    r"\s*(?:[(\[]?([A-Za-z])[).:\]]|([A-Za-z])\s+[-\u2013]|[(\[]?(\d{1,2})(?:[)\]]|\.(?=\s)))\s*(?=\S)"
)
_PREFIX = re.compile(r"\s*[*_(\[]*([A-Za-z])[*_]*(?:[.):\]]+|\s+[-\u2013\u2014]|\s)[*_]*\s*(?=\S)")
_ALONE = re.compile(
    r"[\s*_`\"'(\[{$<#]*(?:\\(?:text|textbf|mathbf|mathrm)\s*\{)?\(?([A-Za-z])\)?[\s*_`\"')\]}$>.,:;!]*"
)
_WRAPPED = re.compile(r"^(?:\*\*|__|`|\"|\$|\\\(|<)\s*(.*?)\s*(?:\*\*|__|`|\"|\$|\\\)|>)$", re.DOTALL)
# Signs that tell choices apart: such a text is never compared by its words alone.
_SYMBOLS = re.compile(
    r"[+\u2212<>=^/*%$\\{}|#&@\u00b0\u2032\u2033~\u221a\u00b1]|(?<!\w)-|-(?!\w)|\w'(?!\w)"
    r"|\d[.,:-]\d|[^\W\d_]-?\d|\d-?[^\W\d_]"
)
_NOT_BEFORE = (
    "not never isn't wasn't rather_than instead_of unlike except neither nor kein\\w* nicht pas nie niet"
)
_NOT = re.compile(one_of(_NOT_BEFORE) + r"\s+(?:(?i:in|at|on|by|the|a|an|be|ein\w*|un\w*|del?)\s+)*$")
_OR = re.compile(
    r"^\s*(?:,\s*)?(?:or(?! rather)|oder|ou|and/or|/)\s+(?:(?:an?|the|in|at|maybe|perhaps)\s+)*$|^\s*/\s*$",
    re.IGNORECASE,
)
_COMMA = re.compile(
    r"^\s*(?:,|;|\band\b|\bor(?! rather)\b|&)[\s,]*(?:(?:and|or|an?|the)\s+)*$", re.IGNORECASE
)


def own_texts(choices: Sequence[str]) -> list[str]:
    """The choices without a letter of their own ("A)21"), if all of them carry the one of their place."""
    matches = [_OWN_LETTER.match(choice) for choice in choices]
    carried = [next(filter(None, match.groups())).upper() if match else "" for match in matches]
    places = (list(ascii_uppercase[: len(choices)]), [str(at + 1) for at in range(len(choices))])
    if len(choices) < 2 or carried not in places:
        return list(choices)
    return [choice[match.end() :] for choice, match in zip(choices, matches, strict=True) if match]


def first_alike(letter: str, choices: Sequence[str]) -> str:
    """The letter of the first choice with the same text: data sets give some choices twice."""
    at = ascii_uppercase.find(letter) if letter else -1
    return ascii_uppercase[list(choices).index(choices[at])] if 0 <= at < len(choices) else letter


def plain_letter(text: str, letters: str) -> str | None:
    """The letter if the text is one letter and nothing but marks around it."""
    alone = _ALONE.fullmatch(text)
    return alone[1].upper() if alone and alone[1].upper() in letters else None


def named_by_text(text: str, choices: Sequence[str], *, whole: bool) -> str | None:
    """The letter of the one choice that the text is (alone or after its letter), or else mentions last."""
    return _whole(text, choices) if whole else _mentioned(text, choices)


def _whole(text: str, choices: Sequence[str]) -> str | None:
    prefix = _PREFIX.match(text)
    for at, form in enumerate(_FORMS):
        wanted = [_forms(choice)[at] for choice in choices]
        if letter := _only(form(text), wanted, choices):
            return letter
        if prefix and (letter := _only(form(text[prefix.end() :]), wanted, choices)) == prefix[1].upper():
            return letter
    return None


def _only(given: object, wanted: Sequence[object], choices: Sequence[str]) -> str | None:
    """The letter of the one choice that is equal, or the first of several with one and the same text."""
    equal = [number for number, one in enumerate(wanted) if given and one == given]
    return ascii_uppercase[equal[0]] if len({choices[number] for number in equal}) == 1 else None


def _trimmed(text: str) -> str:
    """Without wrappers and the final period."""
    text = " ".join(text.split())
    while True:
        before = text
        text = re.sub(r"(?<!\.)[.,;:!]$", "", text).strip()
        inner = _WRAPPED.fullmatch(text)
        if inner and not (text[0] == "$" and "$" in inner[1]):
            text = inner[1]
        if text == before:
            return text


def _symbols(text: str) -> str:
    """Signs of one meaning in one spelling, without space and LaTeX's delimiters; case stays."""
    text = clean(_trimmed(text)) if not text.isascii() or "\\" in text or "$" in text else _trimmed(text)
    return re.sub(r"\s+(?=[^\w\s])|(?<=[^\w\s])\s+", "", text.replace("$", "").strip())


def _casefolded(text: str) -> str:
    return _symbols(text).casefold()


def _number(text: str) -> object:
    """Its value, if it is a number: 22.50 is 22.5."""
    text = _trimmed(text).replace("$", "")
    if not re.search(r"\d", text) or re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{2}", text) or len(text) > 40:
        return None
    return number(clean(text))


def _words(text: str) -> str:
    """Lower-case words with single spaces; "" if signs between or beside them have a meaning."""
    text = _trimmed(text)
    return "" if _SYMBOLS.search(text) else " ".join(re.findall(r"\w+", text.casefold()))


_FORMS = (str.strip, _trimmed, _symbols, str.casefold, _casefolded, _number, _words)
"""How a text and a choice are compared: the first form in which one choice alone is equal counts."""


@lru_cache(maxsize=1024)
def _forms(choice: str) -> tuple[object, ...]:
    return tuple(form(choice) for form in _FORMS)


def _mentioned(text: str, choices: Sequence[str]) -> str | None:
    """The choice whose text ends last; of two that end together the longer ("department store", not "store").

    A denied mention counts for nothing, and of choices in a list of several none is named.
    """
    spans = _spans(" ".join(text.split()), choices)
    if not spans:
        return None
    last = spans[-1]
    joined = [
        span for span in spans[:-1] if span[2] != last[2] and span[1] <= last[0] and _joined(text, span, last)
    ]
    return None if joined else last[2]


def _joined(text: str, span: tuple[int, int, str], last: tuple[int, int, str]) -> bool:
    between = " ".join(text.split())[span[1] : last[0]]
    return bool(_OR.match(between) or _COMMA.match(between))


_MARKED_BEFORE = re.compile(
    r"(?<![\w'])[A-Z][*_]*[).:,\]-]+[\s*_\"'(]*$|\([A-Z]\)[\s*_:]*$|(?<![\w'])[A-Z]\s+[(\u2013-]\s*$"
)
_MARKED_BEHIND = re.compile(r"\s*(?:\(([A-Z])\)|[\u2013-]\s+([A-Z])(?!\w))")
_ARTICLE = re.compile(r"(?i:(?<!\w)(?:the|an?)\s+)$")
_SAYS_ITSELF = re.compile(rf"(?:{NOT}).|.(?:{NOT})|(?<!\w)[A-Z](?!\w)..|..(?<!\w)[A-Z](?!\w)")


def with_letters(text: str, choices: Sequence[str], *, all_texts: bool) -> str:
    """The text with "(B)" in place of a choice's text, or of such a text beside a letter.

    A text beside its own letter is left out. Where one holds a denial or letters of its own ("not hungry",
    "A and B"), all are replaced: they say nothing about others.
    """
    parts: list[str] = []
    done = 0
    spans = _spans(text, choices, denied=True)
    all_texts = all_texts or any(_SAYS_ITSELF.search(text[start:end]) for start, end, _ in spans)
    for start, end, letter in spans:
        if start < done:
            continue
        before = text[done:start]
        labels = _MARKED_BEFORE.search(text[max(0, start - 20) : start]), _MARKED_BEHIND.match(text, end)
        label = next((re.findall("[A-Z]", found[0])[0] for found in labels if found), "")
        if not (all_texts or label):
            continue
        parts.append(_ARTICLE.sub("", before) + ("" if label == letter else f"({letter})"))
        done = end
    return "".join(parts) + text[done:]


def _spans(text: str, choices: Sequence[str], *, denied: bool = False) -> list[tuple[int, int, str]]:
    """(start, end, letter) of mentions that nothing denies, by their end; those in longer ones left out."""
    for form in (lambda choice: choice, str.casefold):
        wanted = [form(" ".join(_trimmed(choice).split())) for choice in choices]
        # What only case tells apart is not told apart without it. Of one text given twice the first counts.
        alike = [{choices[other] for other, text_ in enumerate(wanted) if text_ == one} for one in wanted]
        wanted = [
            one if len(alike[at]) == 1 and wanted.index(one) == at else "" for at, one in enumerate(wanted)
        ]
        spans = [
            (match.start(), match.end(), letter)
            for letter, one in zip(ascii_uppercase, wanted, strict=False)
            if re.search(r"\w", one)
            for match in _occurrences(one, form(text))
            if denied or not _NOT.search(form(text)[: match.start()])
        ]
        within = {
            a for a in spans for b in spans if a != b and b[0] <= a[0] and a[1] <= b[1] and a[2] != b[2]
        }
        spans = sorted(set(spans) - within, key=lambda span: (span[1], -span[0]))
        if spans:
            return spans
    return []


def _occurrences(wanted: str, text: str) -> list[re.Match[str]]:
    """Where it stands whole: neither a word nor a sign goes on before or behind it."""
    before, behind = r"(?<![\w+\-\u2212<>=^/*\\.'{])", r"(?![\w+<>=^/*'{]|-\w|[.,:]\d|-$|-\s)"
    # "A (library)" names it; of "(0, 1)" and "f(x)" it is a part.
    before += r"(?<!\w\()" if re.match(r"[^\W\d_]{3}", wanted) else r"(?<!\()"
    return list(re.finditer(before + re.escape(wanted) + behind, text))
