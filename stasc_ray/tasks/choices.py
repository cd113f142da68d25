"""Which choice of a multiple-choice question an answer names: by letter, or by the text of the choice. Pure.

An answer that names several ("A or B"), or only denies one ("not A"), names none.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from stasc_ray.tasks.answer_words import ANSWER, BECAUSE, CHOICE, IS, NOT, NOT_AFTER, OR_AND, RIGHT, one_of
from stasc_ray.tasks.choice_claims import claims, left
from stasc_ray.tasks.choice_texts import named_by_text, own_texts, plain_letter, with_letters
from stasc_ray.tasks.math.text import last_boxed

_LETTER = (
    r"(?<![\w'\u2019\\-])[(\[{<\"'`*_$\u2018\u201c]*([A-Z]|[a-z])[)\]}>\"'`*_$\u2019\u201d]*"
    r"(?![\w+#]|['\u2019](?!d[i\u0131]r)\w|-\w)"
)
_LINK = one_of(
    """is would be should must can only definitely probably likely clearly therefore thus so then option
    choice letter number the correct ist lautet est es è é la le die der das opción lettre buchstabe"""
)
_LINKS = rf"[\W_]*(?:{_LINK}[\W_]*)*"
_IS = one_of("is would_be should_be must_be therefore thus ist lautet est es è é")
_BEFORE_TEXT = re.compile(rf"[\s*_]*[:=]?\s*(?:{_IS}\s+|[:=]\s+)*")
_KEYWORD = re.compile(f"{ANSWER}|{CHOICE}|{one_of('option')}")
_REMAINS = one_of("remains it_is fits")
_SUBJECT = re.compile(rf"{_LETTER}(?:{IS}[^.,;\n]{{0,40}}?(?:{RIGHT})|\s+{_REMAINS})")
_NEGATION = re.compile(NOT)
_CANNOT = one_of("isn't wasn't doesn't cannot can't")
_DENIAL = re.compile(
    rf"\s*{one_of('is was are ist est es é è cannot seems does')}"
    rf"(?:(?!\b(?:and|but)\b)[^,;.\n]){{0,40}}?(?:{NOT})"
    rf"|{NOT_AFTER}|\s*{_CANNOT}"
)
_LISTED = re.compile(
    rf"{_LETTER}(?:\s*[)\]]?\s*(?:,\s*(?:{OR_AND}|then\b)?|[/|;&+]|{OR_AND})\s*"
    rf"(?:{one_of('either maybe perhaps possibly option choice')}\s+)*{_LETTER})+"
)
_REASON = re.compile(BECAUSE)
_TAKEN_BACK = re.compile(
    r"(?i)\b(?:wait|actually|no|hmm)\b[\W_]+(?:no|wait|th(?:at|is)(?:['\u2019]s|\s+is|\s+was)\s+(?:wrong|incorrect|not\s+\w+))\W*$"
)
_VERDICT = re.compile(rf"\W*(?:\w+\s+)?(?:{RIGHT}|{NOT})\W*(?:\w+\W*)?$")
_ALL_BUT = re.compile(
    r"(?i:\b(?:all|every\w*|none|nothing)(?:\s+\w+)?\s+(?:but|except)(?:\s+for)?\s+(?:the\s+)?)"
    rf"\(?([A-Z])\)?\s+(?i:is|are|can\s+be|seems?)\s+(?:\w+\s+)?(?:{NOT})\W*$"
)
_NOT_JUST_BEFORE = re.compile(rf"(?:{NOT})\s*$")
_SENTENCE_END = re.compile(r"[;\n]|[.!?\u3002\uff01\uff1f](?=[\s\W]|$|[^\x00-\x7f])(?!\s*(?i:or|oder|ou)\s)")
# What may follow "A" or a small letter that stands for a choice: before other words it is an article.
_AFTER_LETTER = one_of(
    "because since as which is was due for and or with weil ist est es porque parce but not rather instead"
)
_ENDS = re.compile(
    rf"[)\]}}>\"'`*_$]*(?:[\W_]*(?:$|\n)|\s*[^\w\s]|\s+{_AFTER_LETTER}|\s+\d+[.):]\s|\s*[^\x00-\x7f])"
)
_BEFORE_LETTER = one_of(
    """so be is it's are say guess with then thus hence therefore think believe but was ist est es also it to
    for or and definitely probably likely clearly surely go es_la c'est_la"""
)
_AFTER_HEAD = one_of("rather_than instead_of because since as weil parce_que porque denn car")
_SET_APART = re.compile(
    r"\(([A-Za-z])\)"  # (B)
    r"|^[\W_]*([A-Za-z])[\W_]*$"  # a line of its own
    r"|^[\s*_#>-]*([A-Z])[.):][*_]*(?=\s)"  # B. the text
    rf"|(?:^|[,:;.!?=>\u2192\u2013\u2014]|{_BEFORE_LETTER})[\s*_\"'(]*([A-Z])"  # ... so it is B.
    r"(?=[.!,;*_\"')\]]*\s*(?:$|\n)|[.!]+[*_\"')\]]*\s|\s*[\u2013\u2014]|,\s)"
    r"|\A[\s*_\"'(]*([A-Z])[*_)\"']*"  # B, because ...
    rf"(?=,|\s+{_AFTER_HEAD}|\s+[-\u2013\u2014]\s|\s*(?:です|だ|입니다|이다)\W*$)",
    re.MULTILINE,
)
_ENUMERATED = re.compile(r"^[\s*_#>-]*\(?([A-Z])[.):][*_]*(?=\s)", re.MULTILINE)
_NUMBERED = re.compile(
    r"(?i:\b(?:option|choice|number|no\.|nummer|opci[óo]n)(?:\s+is)?)\s*#?\s*\(?(\d{1,2})\)?(?![\w.,]*\d)"
)
_RUNS = re.compile(r"[^\S\n]{2,}|\n{3,}|([^\w\s]|_)\1{9,}")
_DENIED = "not "
_END_READ = 4000
"""Characters at the end of a text that are searched for a statement."""
_TAG = re.compile(r"<(answer|result|final_answer)>\s*(.*?)\s*</\1>", re.IGNORECASE | re.DOTALL)


def choice_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice an answer names, or None.

    In this order: the whole text is a choice's text, alone or after its letter; the last box or tag; the last
    statement ("the answer is B", "B is correct"); the last letter set apart ("(B)", "B." before a text, a
    line with B alone, B at the end of a sentence); the choice whose text is mentioned last. Letters in a list
    ("A or B") and denied ones ("not A") are none.

    Args:
        text: the part of the answer that is graded.
        choices: the choices' texts, A first; without them any letter counts and texts cannot be read. Where
            each carries its own letter ("A)21"), it is left out.
    """
    letters = ascii_uppercase[: len(choices)] if choices else ascii_uppercase
    choices = own_texts(choices)
    short = len(text) <= max(map(len, choices), default=0) + 200
    letter = _alone(text, letters, choices) if short else ""
    if letter != "":
        return letter
    boxed = last_boxed(text)
    if boxed is not None:
        inner = re.sub(r"\\[a-z]+\s*\{([^{}]*)\}", r"\1", boxed)
        return choice_letter(inner, choices) or named_by_text(boxed, choices, whole=True)
    if tags := _TAG.findall(text[-_END_READ:]):
        return choice_letter(tags[-1][1], choices)
    text = _RUNS.sub(lambda run: run[0][0], _spaced(text[-_END_READ:]))
    as_given, text = text, with_letters(text, choices, all_texts=False)
    if _TAKEN_BACK.search(text):
        return None
    if except_one := _ALL_BUT.search(text):
        return except_one[1] if except_one[1] in letters else None
    for found in (_stated(text, letters, choices), _set_apart(text, letters)):
        if found is not None:
            kept = left(claims(text, _units(text, letters)), found)
            return None if kept and _is_text_of_another(kept, choices, as_given) else kept
    if kept := left(claims(text, _units(text, letters)), ""):
        return None if _is_text_of_another(kept, choices, as_given) else kept
    return _by_number(text, letters, choices) or _by_text(text, letters, choices)


def _by_text(text: str, letters: str, choices: Sequence[str]) -> str | None:
    """The choice whose text alone is left of those that are mentioned."""
    text = _without_enumeration(text)
    text = with_letters(text, choices, all_texts=True)
    said = claims(text, _units(text, letters))
    named = [claim.letter for claim in said if claim.says >= 0 and text[claim.start - 1 : claim.start] == "("]
    return left(said, named[-1]) if named else None


def _units(text: str, letters: str) -> list[list[re.Match[str]]]:
    """The letters that stand for choices, those of one list together."""
    enumerated = {
        match.start(1)
        for match in _ENUMERATED.finditer(text)
        if not _VERDICT.match(text[match.end() :].split("\n")[0])
    }
    if len({text[at] for at in enumerated}) < 3:
        enumerated = set()
    lists = [match.span() for match in _LISTED.finditer(text)]
    contrasts = {span for span in lists if _contrast(text, span)}
    units: list[list[re.Match[str]]] = []
    last = None
    for match in re.finditer(_LETTER, text):
        usable = match[1].isupper() or "(" in match[0]
        if not usable or match[1].upper() not in letters or match.start(1) in enumerated:
            continue
        span = next((span for span in lists if span[0] <= match.start() < span[1]), None)
        if not _stands_for_choice(match, text, listed=span is not None):
            continue
        if span and span == last and span not in contrasts:
            units[-1].append(match)
        else:
            units.append([match])
        last = span
    return units


def _contrast(text: str, span: tuple[int, int]) -> bool:
    """Whether a list of two begins behind a denial and says the other: "not A, B"."""
    given = text[slice(*span)]
    if re.search(OR_AND, re.sub(r"(?<!\w)[A-Z](?!\w)", "", given)):  # E, O and Y are words for "and", "or"
        return False
    two = len(re.findall(r"(?<!\w)[A-Za-z](?!\w)", given)) == 2 and re.search("[,;]", given)
    return bool(two and _NOT_JUST_BEFORE.search(text[max(0, span[0] - 20) : span[0]]))


def _alone(text: str, letters: str, choices: Sequence[str]) -> str | None:
    """The letter if the whole text is a letter or a choice's text, None if it could be either, else ""."""
    if text.strip() in choices and not text.strip().isupper():
        return named_by_text(text, choices, whole=True)
    if letter := plain_letter(text, letters):
        return None if _is_text_of_another(letter, choices) else letter
    return named_by_text(text, choices, whole=True) or ""


def _by_number(text: str, letters: str, choices: Sequence[str]) -> str | None:
    """The letter of "Option 2", unless the choices hold numbers of their own."""
    numbers = [int(number) for number in _NUMBERED.findall(text)]
    if not numbers or any(re.search(r"\d", choice) for choice in choices):
        return None
    return letters[numbers[-1] - 1] if 0 < numbers[-1] <= len(choices) else None


def _without_enumeration(text: str) -> str:
    """Without the lines of the choices, if the text writes several of them again."""
    lines = text.splitlines()
    enumerated = [line for line in lines if _ENUMERATED.match(line)]
    return "\n".join(line for line in lines if line not in enumerated) if len(enumerated) > 1 else text


def _is_text_of_another(letter: str, choices: Sequence[str], text: str = "") -> bool:
    """Whether a letter is also the text of another choice, and so does not tell which is meant."""
    if text and named_by_text(text, choices, whole=False) == letter:
        return False
    return any(
        choice.strip().upper() == letter != own for own, choice in zip(ascii_uppercase, choices, strict=False)
    )


def _stated(text: str, letters: str, choices: Sequence[str]) -> str | None:
    """The letter of the last statement, "" if that names several or denies it, None if there is none."""
    found: list[tuple[int, str]] = []
    for start, clause in _statements(text):
        said = _BEFORE_TEXT.sub("", clause, count=1) if choices else ""
        by_text = named_by_text(said, choices, whole=True) if not re.fullmatch(r"\W*\w\W*", said) else None
        named = by_text or _affirmed(clause, letters)
        if named is not None:
            found.append((start, named))
    for match in _SUBJECT.finditer(text):
        letter = match[1].upper()
        usable = letter in letters and (match[1].isupper() or match[0].startswith("("))
        denied = _NEGATION.search(match[0]) or _denied(text, match.start()) or _listed(text, match.start(1))
        if usable and not denied:
            found.append((match.start(), letter))
    last: str | None = None
    for _, named in sorted(found):
        if not named.startswith(_DENIED):
            last = named
        elif last and last in named:
            last = ""  # "the answer is A. No, it is not A."
    return last


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(position, what follows to the end of the sentence) of each "the answer is", "I pick", "Option"."""
    for keyword in _KEYWORD.finditer(text):
        if _NOT_JUST_BEFORE.search(text[max(0, keyword.start() - 30) : keyword.start()]):
            continue
        rest = text[keyword.end() : keyword.end() + 200]
        rest = re.sub(r"^[\s:*_=]*\n\s*", " ", rest)
        end = _SENTENCE_END.search(rest)
        clause = rest[: end.start()] if end else rest
        yield keyword.start(), clause


def _affirmed(clause: str, letters: str) -> str | None:
    """What a clause behind "the answer" names: a letter, "" if several, what it denies, or None."""
    reason = _REASON.search(clause)
    affirmed, denied = _named(clause[: reason.start()] if reason else clause, clause, letters)
    if affirmed:
        return affirmed.pop() if len(affirmed) == 1 else ""
    if denied and reason and re.fullmatch(r"(?i:but|rather|sondern)", reason[0]):
        return _affirmed(clause[reason.end() :], letters)
    return _DENIED + "".join(sorted(denied)) if denied else None


def _named(given: str, clause: str, letters: str) -> tuple[set[str], set[str]]:
    """The letters that a part of a clause affirms and denies."""
    affirmed: set[str] = set()
    denied: set[str] = set()
    for match in re.finditer(_LETTER, given):
        before = given[: match.start()]
        first = not affirmed and not denied
        if first and len(re.findall(r"\w+", before)) > 6:
            break
        listed = any(found.start() <= match.start() < found.end() for found in _LISTED.finditer(clause))
        if not _stands_for_choice(match, clause, listed=listed):
            continue
        letter = match[1].upper()
        if letter in letters:
            after = re.split(r"[,;]|\b(?:and|but|or)\b", given[match.end() :])[0]
            is_denied = _NEGATION.search(_last_clause(before)) or _DENIAL.match(after)
            (denied if is_denied else affirmed).add(letter)
        elif first:
            break
    return affirmed, denied


def _last_clause(before: str) -> str:
    return re.split(r"[,;:]|\b(?:and|but)\b", before)[-1]


def _stands_for_choice(match: re.Match[str], clause: str, *, listed: bool) -> bool:
    letter, rest = match[1], clause[match.start(1) + 1 : match.start(1) + 200]
    if letter == "I":
        return re.fullmatch(r"[\W_]*", rest) is not None
    wrapped = match[0] != letter and match[0][0] in "([{\"'`*_$"
    if wrapped or listed or (letter.isupper() and letter != "A"):
        return True
    linked = letter.isupper() or re.fullmatch(_LINKS, clause[: match.start()], re.IGNORECASE)
    return bool(linked) and _ENDS.match(rest) is not None


def _set_apart(text: str, letters: str) -> str | None:
    """The last letter that stands apart and is not denied; "" where it stands in a list or is denied."""
    enumerated = {match.start(1) for match in _ENUMERATED.finditer(text)}
    if len({text[at] for at in enumerated}) < 2:
        enumerated = set()  # one "B. the text" is an answer, several are the choices again
    found: str | None = None
    for match in _SET_APART.finditer(text):
        group = next(number for number in range(1, 6) if match[number])
        letter = match[group].upper()
        if letter not in letters or match.start(group) in enumerated:
            continue
        if _listed(text, match.start(group)):
            found = ""
        elif _denied(text, match.start(group)):
            found = found if found and found != letter else ""
        else:
            found = letter
    return found


def _listed(text: str, at: int) -> bool:
    """Whether the letter at this position is one of a list of different letters."""
    start = max(0, at - 60)
    for match in _LISTED.finditer(text[start : at + 60]):
        if start + match.start() <= at < start + match.end():
            letters = re.findall(r"(?<!\w)[A-Za-z](?!\w)", match[0])
            if letters[-1] == "I" and re.match(r"\s+[a-z]", text[start + match.end() :]):
                letters.pop()  # "B, I think"
            leading = text[max(0, start + match.start() - 20) : start + match.start()]
            contrast = len(letters) == 2 and "," in match[0] and _NOT_JUST_BEFORE.search(leading)
            return len(set(letters)) > 1 and not contrast  # "unlike A, B"
    return False


def _denied(text: str, at: int) -> bool:
    """Whether what leads to this position denies it ("not A"), or what follows does ("A is wrong")."""
    before = re.split(r"[,;:.!?\n]|(?<!thing )(?<!all )\bbut\b", text[max(0, at - 40) : at])[-1]
    return bool(_NEGATION.search(before) or _DENIAL.match(re.sub(r"^\w[)\]*_\"']*", "", text[at : at + 60])))


def _spaced(text: str) -> str:
    """Full-width letters as ASCII, and space between letters and the signs of scripts without spaces."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(
        unicodedata.normalize("NFKC", sign)
        if "\uff01" <= sign <= "\uff5e" or "\u24b6" <= sign <= "\u24e9"
        else sign
        for sign in text
    )
    if text.isascii():
        return text
    wide = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
    return re.sub(rf"(?<=[{wide}])(?=[A-Za-z])|(?<=[A-Za-z])(?=[{wide}])", " ", text)
