"""How texts are made comparable by words: case, accents, marks, digits, spelling and scripts. Pure.

Reads texts, writes none: raw text is stored as generated, and normalized here and nowhere else.
"""

import re
import unicodedata
from functools import lru_cache

ARTICLES = frozenset({"a", "an", "the"})
_LETTERS_FOLDED = str.maketrans(
    {
        "ø": "o", "ł": "l", "đ": "d", "\u0131": "i", "æ": "ae", "œ": "oe", "\u2019": "'",
        **dict.fromkeys("\u2212\ufe63\uff0d", "-"), **dict.fromkeys("\u2010\u2011", "-"),
        "\u066b": ".", "\u066c": ",", "\u066a": "%", "\u0640": "",
    }
)  # fmt: skip
_DASHED_NUMBER = re.compile(r"(?<![\w.,)\]])[\u2012\u2013](?=\.?\d)")
_ACCENTS = re.compile("[\u0300-\u036f]")
# Vowel points that writers leave out: Hebrew, Arabic (with the hamza above or below a letter).
_POINTS = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]"
)
_THOUSANDS = re.compile(r"(?<![\d,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_POSSESSIVE = re.compile(r"(?<=\w)'s\b")
# "end.Paris"; not "U.S.", "Ph.D."
_PARTING_PERIOD = re.compile(r"(?<=[^\W\d_]{3})\.(?=[^\W\d_])|(?<=[^\W\d_])\.(?=\d)")
_DROPPED = re.compile(r"'|\.(?!\d)")  # U.S. = US; the point in 3.14 stays
# Everything else that is no letter, digit or mark parts words; a minus sign before a number stays.
_PARTING = re.compile(r"[^\w\s.\-]|_|(?<=\w)-|-(?!\.?\d)")
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010\u2011](?=[^\W_])|(?<=[^\W_])[-\u2010\u2011](?=[^\W\d_])")
_INITIALS = re.compile(r"(?<![\w.])((?:[^\W\d_]\.\s+)+)(?=[^\W\d_]\.)|(?<!\w)([A-Z] )(?=[A-Z] [A-Z][a-z])")
_WORD_NUMBER = re.compile(r"(?<=[a-z]{2}) (?=\d)")
_WORDNUMBER = re.compile(r"(?<=[a-z]{2})(?=\d)")
_WHOLE_DECIMAL = re.compile(r"(?<![\d.])(\d+)\.0+(?![\d.])")

UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
"""Scripts that do not part words by spaces (Thai, Lao, Burmese, Khmer, Japanese, Chinese)."""
_MINUS_BESIDE = re.compile(rf"(?<={UNSPACED.pattern})-(?=\.?\d)")
_HANGUL = "\uac00-\ud7a3"
_MARKS = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u105e-\u1060"
    "\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d\u17b4-\u17d3\u17dd"
)
_CHARACTER = re.compile(f"({UNSPACED.pattern}[{_MARKS}]*)")
_SYLLABLE = re.compile(f"([{_HANGUL}])")
_SCRIPT_CHANGE = re.compile(f"(?<=[0-9a-z])(?=[{_HANGUL}])|(?<=[{_HANGUL}])(?=[0-9a-z])")
_SENTENCE_MARKS = str.maketrans(
    "\u3002\u3001\uff0c\uff1a\uff1b\uff01\uff1f\uff08\uff09\u201c\u201d\u300c\u300d", '.,,:;!?()""""'
)


def normalize(text: str) -> str:
    """Normalize as SQuAD and NQ do (lower case, no punctuation, no articles, single spaces), without their
    accidents.

    Beyond them: accents and vowel points fold (Beyonce = Beyoncé), digits of all scripts are the same,
    thousands separators go (1,000 = 1000), a decimal point and a minus sign stay (3.14 is not 314),
    punctuation between words parts them (4-3 is not 43), a possessive 's goes, and an article that ends the
    text is a name (Vitamin A).
    """
    text = text.casefold() if text.isascii() else _fold(text)
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    text = _DROPPED.sub("", _PARTING_PERIOD.sub(" ", _POSSESSIVE.sub("", text)))
    words = _PARTING.sub(_space_but_marks, text).split()
    return " ".join([*(word for word in words[:-1] if word not in ARTICLES), *words[-1:]])


@lru_cache(maxsize=4096)
def spellings(text: str) -> tuple[str, ...]:
    """The normalized forms by which a text is compared: as it stands and, if a hyphen joins words, closed.

    Beyond `normalize`: initials are written together (J. K. = J.K.), 29.00 is 29, and characters of scripts
    without spaces stand apart, so that a number or a Latin name among them is a word.
    """
    joined = _INITIALS.sub(lambda initials: initials[0].replace(" ", ""), text)
    closed = _HYPHEN.sub("", joined)
    forms = [_apart(normalize(form)) for form in ([joined] if closed == joined else [joined, closed])]
    return tuple(dict.fromkeys(forms))


@lru_cache(maxsize=1024)
def in_one_piece(reference: str) -> tuple[str, ...]:
    """The `spellings` of a reference, and those with word and number closed or apart (iPhone15)."""
    forms = spellings(reference)
    both = (form for text in forms for form in (_WORD_NUMBER.sub("", text), _WORDNUMBER.sub(" ", text)))
    return tuple(dict.fromkeys([*forms, *both]))


def unaccented(text: str) -> str:
    """The text without accents, its case kept."""
    return (
        text
        if text.isascii()
        else unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))
    )


def units(text: str) -> list[str]:
    """The units that `f1` counts in a normalized text: words, and characters of Chinese, Japanese, Korean,
    Thai and the like (as DRCD's and KorQuAD's scripts do).
    """
    return _SYLLABLE.sub(r" \1 ", text).split()


def word_count(text: str) -> int:
    """Words between spaces; of scripts without spaces each character is one."""
    return len(_CHARACTER.sub(r" \1 ", text).split())


def spaced(text: str) -> str:
    """The text with ASCII punctuation for Chinese and Japanese, and space between their characters and words
    of letters.
    """
    if text.isascii():
        return text
    return (
        re.sub(
            rf"(?<=[\w])(?={_LATIN})|(?<={_LATIN})(?=[^\W\d_a-zA-Z])", " ", text.translate(_SENTENCE_MARKS)
        )
        if UNSPACED.search(text)
        else text
    )


_LATIN = "[A-Za-z0-9]"


def _fold(text: str) -> str:
    text = _DASHED_NUMBER.sub("-", text).casefold().translate(_LETTERS_FOLDED)
    text = _MINUS_BESIDE.sub(" -", text)
    text = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    text = unicodedata.normalize("NFC", _POINTS.sub("", text)).casefold()
    signs = (str(unicodedata.digit(sign)) if sign.isdecimal() else sign for sign in text)
    return "".join(sign for sign in signs if unicodedata.category(sign) != "Cf")


def _space_but_marks(match: re.Match[str]) -> str:
    """Vowel signs are no letters to `re`, but they part no words."""
    return match[0] if unicodedata.category(match[0])[0] == "M" else " "


def _apart(text: str) -> str:
    text = _WHOLE_DECIMAL.sub(r"\1", text)
    if text.isascii():
        return text
    return " ".join(_SCRIPT_CHANGE.sub(" ", _CHARACTER.sub(r" \1 ", text)).split())
