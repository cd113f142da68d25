r"""What an answer in mathematics states: one expression, cut out of a sentence. Pure.

Answers come bare (`2\sqrt{3}`), delimited (`$2\sqrt{3}$`), boxed, with units (`72 clips`) or in a sentence.
If a text holds several numbers and does not say which is the answer, it states nothing.
"""

import re

from stasc_ray.tasks.answer_words import ANSWER, CLOSING, EQUALS, RESULT, UNSURE, UNSURE_AFTER, one_of
from stasc_ray.tasks.math.signs import clean

LONGEST = 400
"""Characters of an expression with the words around it: what is longer states none."""
END_READ = 4000
"""Characters at the end of a text that are searched for its answer."""

_RUNS = re.compile(r"[^\S\n]{2,}|\n{3,}|([*_`=-])\1{9,}")
_EMPHASIS = re.compile(r"(?<![\w)])\*\*(?=\S)([^*\n]+?)\*\*(?![\w(])")
_BECAUSE = re.compile(rf"[\s,(]+{one_of('because since weil parce_que porque denn')}|\s*因为")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+(-?\d[\d.]*)(?![\w\\^/({])")
_METERS = re.compile(r"(-?\d[\d.,/]*)\s+m(?=\s*(?:\^|$))")
_IN_BRACKETS = re.compile(r"(\$?\d[\d.]*\s+[^\W\d_]{3,})\s*\(=?\s*[\d.]+\s+[^\W\d_]{3,}\)")
_BETWEEN_BOXES = re.compile(r"[\s$,;.]*(?:and|or|\\text\{\s*(?:and|or)\s*\})?[\s$]*")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textrm|textbf|textit|mathbf|mathit|rm|bf)\s*\{([^{}]*)\}")
_TAG = re.compile(r"</?\s*(?:answer|result|final[_ ]answer)\s*>", re.IGNORECASE)
_STATEMENT = re.compile(rf"(?:{ANSWER}|{RESULT}|####)[*_]*(?:\s*(?:{EQUALS})[*_]*|(?<=####))+\s*(?=\S)")
_PLEASANTRY = re.compile(rf"(?<=[.!\s])\s*{CLOSING}.*", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"$\\*(]|[^\x00-\x7f])|(?<=\.)(?=[^\x00-\x7f\s])")
_HEDGES = "could_be might_be maybe perhaps possibly probably unlikely may_be anything_but"
_PARTS = "halves fifths? sixths? sevenths? eighths? ninths? tenths? hundredths? thousandths?"
_OPERATIONS = (
    "root reciprocal inverse opposite logarithm multiple power_of loss_of debt deficit_of decrease_of"
)
_BLOCKED = re.compile(
    rf"{UNSURE}|{one_of(f'{_HEDGES} {_OPERATIONS}')}"
    r"|(?i:\bin\s+base\s*$|^\s*(?:base|down)\s*$|\b(?:could|might)\s*$)"
)
_BLOCKED_AFTER = re.compile(
    UNSURE_AFTER
    + "|"
    + one_of(
        f"{_HEDGES} {_PARTS} dozens? score lakhs? crores? gross couple in_the_red "
        "less below above under negative wrong "
        "times_(?:more|less) base to_the_power in_base"
    )
)
_SHARE = re.compile(one_of("more less off of fewer greater higher lower"))
"""Behind a percentage: it is a factor of something else."""
_CONDITION = re.compile(
    r"(?<=\S)[\s,$(]+(?:when|if|at|for|where|with|given(?:\s+that)?)\s+\$?([a-zA-Z])\s*(?:=|is\b|equals\b)[^<>]*$"
)
_DENIED_AFTER = re.compile(
    rf"[\s$).*,(]*(?:(?:is|was)\s+(?:not|wrong|incorrect|false)\b|isn't|wasn't|or\b|{one_of(_HEDGES)})",
    re.IGNORECASE,
)
_DENIED = re.compile(rf"n't\b|{one_of('not never neither nor ' + _HEDGES)}", re.IGNORECASE)
_SHORT_WORDS = frozenset(
    """is in of to at by on an as be it he we so or if up no my us am do go me cm mm km kg mg ml ft lb oz
    hr hz kw sq la le el un il en de du au es da di em um ja er im zu""".split()  # noqa: SIM905
)
_ATTACHED_UNITS = "cm|mm|km|kg|mg|ml|ft|lbs?|oz|mph|kmh|hours?|hrs?|mins?|minutes?|seconds?|secs?|days?|am|pm"
_JOINING = frozenset("and or und oder et ou e y o и или".split())  # noqa: SIM905
_FUNCTION_WORDS = frozenset(
    """sin cos tan cot sec csc log exp arcsin arccos arctan sinh cosh tanh max min
    pmatrix bmatrix matrix vmatrix array""".split()  # noqa: SIM905
)
_WORD = r"(?:(?<![\\A-Za-z\d_^])[^\W\d_]{2,}|[^\W\d_a-zA-Z]|\\text\{[^{}]*\})(?:['-][^\W\d_]+)*"
_TAIL = re.compile(
    rf"(?:(?<=\d)(?:{_ATTACHED_UNITS})\b|(?<=[\d}}])\s*(?:k?m|cm|mi|ft)\s*/\s*(?:s|h|hr|min|sec)\b|(?<=\d)\s*/\s*(?:hour|day|week|month|year|minute|second|person)\b"
    rf"|[\s,.]*(?:{_WORD}|\((?:\s*{_WORD})+\s*\)|(?<=\s)an?(?=\s*$)|(?<=[A-Za-z}}])\s*/\s*[A-Za-z]{{1,6}}))"
    r"(?:\s*\^\s*\{?[23]\}?)?[.,!?]?\s*$"
)
_MATH_SIGN = re.compile(r"[\d\\$=<>^+*/({\[|]|(?<![A-Za-z])-")
_LINK = re.compile(
    r"\b(?:is|are|was|equals?|be|total of|gives?|makes?|gets?|get|have|has|ist|est|es)\s+(?=[-\d$\\(.])"
    r"|\b(?:so|thus|therefore|hence|altogether)\s+(?=[-\d$\\(])|(?:一共|总共|合计)\s*(?=\d)|(?:=|:)\s*(?=\S)"
)
_LEADING_VALUE = re.compile(
    r"([-+]?[$]?\d[\d.]*(?:/\d+)?%?)\s+[^\W\d_]{2,}(?:\s+[^\W\d_]{2,}){0,2}\s+"
    r"(?:in|after|during|within|over|for|from|by|at|on|per)\s+(?:the\s+|a\s+)?[^\W\d_]*\s*\d[\d.]*\s+[^\W\d_\s]{3,}(?:\s+[^\W\d_]+)*[.!]?"
)


def stated(text: str) -> str | None:
    r"""The one expression that an answer states, cleaned; None if it states none, or several that compete.

    In this order: the last `\boxed{...}` (an unfinished one states nothing), what follows the last "the
    answer is", the last line that holds a number, a formula or, in a text of one line, anything.
    """
    boxed = last_boxed(text)
    if boxed is not None and (len(boxed) > LONGEST or denied_box(text)):
        return None
    if boxed is not None:
        boxed = _unwrap(clean(boxed))
        core = _bare(boxed)
        return core or (None if _BLOCKED_AFTER.search(boxed) else boxed or None)
    text = _EMPHASIS.sub(r"\1", clean(_RUNS.sub(lambda run: run[0][0], text[-END_READ:])))
    text = _one_line_blocks(_PLEASANTRY.sub("", _TAG.sub(" ", text), count=1))
    statement = next(reversed(list(_STATEMENT.finditer(text))), None)
    lines = [line for line in text[statement.end() if statement else 0 :].splitlines() if line.strip()]
    if not lines:
        return None
    line = lines[0] if statement else lines[-1]
    found = _expression(line)
    if found is not None or statement:
        return found
    sentences = [sentence for sentence in _SENTENCE.split(line) if _MATH_SIGN.search(sentence)]
    return _expression(sentences[-1]) if len(sentences) > 0 and sentences[-1] != line else None


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, "" if that is not closed, None if there is none.

    Boxes with nothing but "and", "or" or a comma between them are one list.
    """
    text = _BARE_BOX.sub(r"\\boxed{\1}", text)
    found: list[str] = []
    end = None
    for match in _BOXED.finditer(text):
        if end is not None and match.start() < end:
            continue  # a box in a box
        closing = _closing_brace(text, match.end())
        if closing is None:
            return ""
        if end is None or not _BETWEEN_BOXES.fullmatch(text[end : match.start()]):
            found = []
        found.append(text[match.end() : closing])
        end = closing + 1
    return ", ".join(found) if found else None


def denied_box(text: str) -> bool:
    """Whether the words beside the last box deny or doubt it: in the clause before, or right behind."""
    last = next(reversed(list(_BOXED.finditer(text))), None)
    closing = _closing_brace(text, last.end()) if last else None
    if last is None or closing is None:
        return False
    clause = re.split(r"[.,;:!?\n]|\b(?:so|therefore|(?<!anything )but)\b", text[: last.start()][-200:])[-1]
    return bool(_DENIED.search(clause) or _DENIED_AFTER.match(text, closing + 1))


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if not depth:
            return position
    return None


def without_units(expression: str) -> tuple[str, str]:
    """An expression without the words behind its number, and these words."""
    rest = expression
    while (match := _TAIL.search(rest)) and _ends_in_value(rest[: match.start()]):
        if _FUNCTION_WORDS & set(re.findall(r"[a-z]+", match[0])):
            break
        if not _is_word(match[0]):
            break
        rest = rest[: match.start()].rstrip(" ,.")
    return rest, expression[len(rest) :]


def _ends_in_value(text: str) -> bool:
    r"""Whether a unit may follow: not behind `\angle`, and not behind words alone."""
    command = re.search(r"\\([a-zA-Z]+)\s*$", text)
    known = not command or command[1] in ("pi", "infty", "circ", "degree", "theta")
    return known and _MATH_SIGN.search(_TEXT.sub(" ", text)) is not None


def _is_word(text: str) -> bool:
    """Two letters may be two variables; more are a word."""
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.replace("\\text", ""))
    return (
        "\\text" in text
        or "/" in text
        or all(
            len(word) > 2 or word.lower() in _SHORT_WORDS or word in ("a", "an") or not word.isascii()
            for word in words
        )
    )


def _expression(sentence: str) -> str | None:
    """The expression in one line or sentence, without the words around it."""
    if len(sentence) > LONGEST:
        sentence = _SENTENCE.split(sentence)[-1]
    sentence = _unwrap(sentence) if len(sentence) <= LONGEST else ""
    if not sentence:
        return None
    because = _BECAUSE.search(sentence)
    if because and _MATH_SIGN.search(sentence[: because.start()]):
        sentence = _unwrap(sentence[: because.start()])
    sentence = re.sub(r"^not\s+\S+\s+but\s+|(?<=[\w%$}]),\s*not\s+[-$\d.]+$", "", sentence)
    if brackets := _IN_BRACKETS.fullmatch(sentence):
        sentence = brackets[1]  # 10 days (240 hours)
    if meters := _METERS.match(sentence):
        sentence = f"{meters[1]} \\text{{m}}{sentence[meters.end() :]}"
    condition = _CONDITION.search(sentence)
    if condition and _MATH_SIGN.search(value := sentence[: condition.start()]):
        if re.search(rf"(?<![\\a-zA-Z]){condition[1]}(?![a-zA-Z])", value):
            return None  # n^2 when n = 4
        sentence = _unwrap(value)
    core = _bare(sentence)
    if core is not None:
        return core
    first = _unwrap(_SENTENCE.split(sentence)[0])
    if first != sentence and re.match(r"[-$\d\\(]", first) and "=" not in first:
        core = _bare(first)
    return core or _leading(sentence) or _linked(sentence)


def _leading(text: str) -> str | None:
    """The first number of "72 clips in 2 months"."""
    leading = _LEADING_VALUE.fullmatch(text.replace("\\", ""))
    return _unwrap(leading[1]) if leading else None


def _linked(sentence: str) -> str | None:
    """The expression behind the last "is" or "=" of a sentence."""
    link = next(reversed(list(_LINK.finditer(sentence))), None)
    if link is None:
        return None
    clause = re.split(r"[,;]\s", sentence[: link.start()])[-1]
    if _BLOCKED.search(clause[-25:]):
        return None
    rest = _unwrap(sentence[link.end() :])
    core = _bare(rest)
    return core if core and _MATH_SIGN.search(core) else _leading(rest)


def _bare(text: str) -> str | None:
    """The text if it is an expression but for words before and behind it; None if words stand within it."""
    text = _TEXT.sub(_spell_text, _undelimited(text))
    if not _MATH_SIGN.search(text):
        return text if len(text) < 60 else None  # "Evelyn", "even"
    head = text[: _end_of_words(text)]
    core, tail = without_units(text[len(head) :].strip(" ,:"))
    if _BLOCKED.search(head) or _BLOCKED_AFTER.search(tail):
        return None
    if core.rstrip().endswith("%") and _SHARE.search(tail):
        return None
    inner = _TEXT.sub(" ", core)
    for word in re.finditer(r"(?<![\\A-Za-z])[^\W\d_]{2,}", inner):
        known = word[0].lower() in _FUNCTION_WORDS or word[0] in _JOINING
        if not known and _is_word(word[0]):
            return None
    if re.search(r"\bto\b", inner) or not _MATH_SIGN.search(core):
        return None
    unit = " ".join(re.findall(r"[^\W\d_]+", tail.replace("\\text", "")))
    if unit and (power := re.search(r"\^\s*\{?([23])", tail)):
        unit = ("square ", "cubic ")[int(power[1]) - 2] + unit
    return f"{core} \\text{{{unit}}}" if unit else core


def _end_of_words(text: str) -> int:
    """Where the last word ends that stands before the first sign of mathematics."""
    sign = _MATH_SIGN.search(text)
    words = [word for word in re.finditer(_WORD, text[: sign.start() if sign else None]) if _is_word(word[0])]
    if not words:
        return 0
    particles = re.compile(r"(?:\s+[a\u00e0ye\u00e9o])*(?=\s+\d)").match(text, words[-1].end())  # il y a 72
    return particles.end() if particles else words[-1].end()


def _undelimited(text: str) -> str:
    r"""The text without `$` and its like. A lone dollar sign is money."""
    return re.sub(r"\\[()\[\]]|\$", " ", text).strip()


def _spell_text(match: re.Match[str]) -> str:
    r"""Write out what `\text` only sets in another type: `\text{ and }`, `\mathrm{e}`."""
    inner = match[1].strip(" ,.")
    behind_value = re.search(r"[\d})]\s*$", match.string[: match.start()])
    if len(inner) == 1 and inner not in "ei" and behind_value:
        return f"\\text{{{inner}}}"
    if inner in ("and", "or", "e", "i") or (len(inner) <= 1 or not re.search(r"[^\W\d_]", inner)):
        return f" {match[1]} "
    return f"\\text{{{inner}}}"


_QUOTES = (
    ("**", "**"),
    ("__", "__"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    ("<", ">"),
    ("*", "*"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
)


def _unwrap(text: str) -> str:
    r"""Without emphasis, quotes, delimiters and `<...>` around it, a final period and a leading `=`."""
    while True:
        before = text
        text = text.strip().strip("#").strip()
        text = re.sub(r"(?<!\\ldots)(?:[.,;:?]+|(?<=[A-Za-z]{3})(?<!\\pi)!+)$", "", text)
        text = re.sub(r"^(?:[=~:]|\\(?:approx|sim|therefore|implies|Rightarrow)(?![a-zA-Z])|->)\s*", "", text)
        for opening, closing in _QUOTES:
            inner = text[len(opening) : -len(closing)]
            wrapped = inner and text.startswith(opening) and text.endswith(closing)
            if wrapped and opening not in inner and closing not in inner:
                text = inner
        if (whole := _TEXT.fullmatch(text)) and re.search(r"[\d]", whole[1]):
            text = whole[1]
        if text == before:
            return text


def _one_line_blocks(text: str) -> str:
    r"""Put displayed formulas and matrices, which may span lines, on one line each."""
    pattern = r"\$\$.*?\$\$|\\\[.*?\\\]|\\begin\{(\w+)\}.*?\\end\{\1\}"
    text = re.sub(r"^\s*```\w*\s*$", "", text, flags=re.MULTILINE)
    return re.sub(pattern, lambda block: " ".join(block[0].split()), text, flags=re.DOTALL)
