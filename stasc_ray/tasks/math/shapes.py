r"""Which values an expression holds: a single one, a set, a tuple, an interval or a matrix. Pure.

Several values are a set unless they stand in parentheses: order, braces, `and` and a repeated `x =` mean
nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_SEPARATOR = re.compile(
    r"[,;]\s*(?:(?:and|or)(?![a-zA-Z]))?|(?<![a-zA-Z\\])(?:and|or|und|oder|et|ou)(?![a-zA-Z])"
    r"|(?<=\d) (?:y|e|o) (?=-?\d)"
)
_UNION = re.compile(r"\\cup(?![a-zA-Z])|(?<=[)\]])\s*U\s*(?=[(\[])")
_ORDER = {"<": "<", ">": ">", "\\lt": "<", "\\gt": ">", "\\le": "<=", "\\leq": "<=", "\\leqslant": "<=",
          "<=": "<=", ">=": ">=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">="}  # fmt: skip
_RELATION = re.compile(r"<=|>=|<|>|\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt)(?![a-zA-Z])")
_MATRIX = re.compile(r"\\begin\{([bpvBV]?matrix|array)\}(?:\{[^}]*\})?(.*?)\\end\{\1\}")
_NAME = re.compile(
    r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\{?\w+\}?)?'*(?:\^\{-1\})?(?:\((?:[a-zA-Z](?:,\s*[a-zA-Z])*|-?\d+)\))?"
    r"|m?\s*\\angle\s*[A-Z]+|\|?[A-Z]{2,4}\|?|\\overline\s*\{?[A-Z]{2}\}?|\\text\{[^{}]*\}"
    r"|[a-zA-Z]{3,}(?: [a-zA-Z]+)*"
    r"|\[[A-Z]+\]|[PE]\([A-Z]\)|\([a-zA-Z](?:,\s*[a-zA-Z])+\)"
)
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])")
_IN = re.compile(r"\\in(?![a-zA-Z])")


@dataclass(frozen=True)
class Several:
    """Values in a shape: `kind` is "set", "union", "matrix", or the brackets of a tuple or an interval."""

    kind: str
    items: tuple["Several | str", ...]


Value = Several | str


def shaped(text: str) -> Value:
    """The shape of an expression: which values it holds."""
    text = _bare_group(text)
    if _is_single(text):
        return text
    parts = _split(text, _UNION)
    if len(parts) > 1:
        return Several("union", tuple(map(shaped, parts)))
    member = _IN.search(text)
    if member and _NAME.fullmatch(text[: member.start()].strip()):
        return shaped(text[member.end() :])
    if both := _both(text):
        return both
    items = _split(text, _SEPARATOR)
    if len(items) > 1:
        return _set_of(items)
    return _matrix(text) or _bracketed(text) or _interval(text) or _named(text)


def _matrix(text: str) -> Several | None:
    matrix = _MATRIX.fullmatch(text)
    if not matrix:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", matrix[2]) if row.strip()]
    return Several("matrix", tuple(Several("row", tuple(map(shaped, row))) for row in rows))


def _bracketed(text: str) -> Several | None:
    """A set in braces; a tuple or an interval, whose brackets are its kind."""
    if braces := _enclosed(text, r"\{", r"\}") or _enclosed(text, "{", "}"):
        return _set_of(_split(braces, _SEPARATOR))
    if not (len(text) > 1 and text[0] in "([]" and text[-1] in ")][" and _enclosed(text, text[0], text[-1])):
        return None
    inner = _split(text[1:-1], _SEPARATOR)
    if len(inner) < 2:
        return None
    # ]1, 2[ is the open interval
    return Several((text[0] + text[-1]).replace("][", "()"), tuple(map(shaped, inner)))


def _named(text: str) -> Value:
    """`x = [1, 2]` is the interval, 1 \u00b1 x are two values; else the text itself."""
    if _PLUS_MINUS.search(text):
        return _set_of([text])
    name, side = sides_of(text)
    several = shaped(side) if name else text
    return several if isinstance(several, Several) else text


def sides_of(text: str) -> tuple[str | None, str]:
    """(name, value) of `x = 3`, `9 * 2 = 18` (name ""), or (None, text)."""
    parts = re.split(r"(?<![<>!\\])=|\\approx(?![a-zA-Z])", text)
    if len(parts) < 2 or not parts[-1].strip():
        return None, text
    first, last = parts[0].strip(), parts[-1].strip()
    if _NAME.fullmatch(first):
        return first, last
    if not re.search(r"[a-zA-Z]", re.sub(r"\\(?:times|cdot|frac|sqrt|pi|div)", "", first)):
        return "", last
    return (last, first) if len(parts) == 2 and re.fullmatch(r"[a-zA-Z]", last) else (None, text)


def _interval(text: str) -> Several | None:
    """`x > 3` and `-2 <= x < 5` as intervals, if the middle or one side is a single letter."""
    signs = list(_RELATION.finditer(text))
    sides = [side.strip() for side in _RELATION.split(text)]
    orders = [_ORDER[sign[0]] for sign in signs]
    if len(signs) == 1 and re.fullmatch(r"[a-zA-Z]", sides[1]) and not re.fullmatch(r"[a-zA-Z]", sides[0]):
        sides.reverse()
        orders = [orders[0].translate(str.maketrans("<>", "><"))]
    if len(signs) == 1 and re.fullmatch(r"[a-zA-Z]", sides[0]) and sides[1]:
        closed = orders[0].endswith("=")
        if orders[0][0] == ">":
            return Several("[)" if closed else "()", (sides[1], "\\infty"))
        return Several("(]" if closed else "()", ("-\\infty", sides[1]))
    if len(signs) != 2 or not re.fullmatch(r"[a-zA-Z]", sides[1]) or orders[0][0] != orders[1][0]:
        return None
    if orders[0][0] == ">":
        sides.reverse()
        orders.reverse()
    kind = ("[" if orders[0].endswith("=") else "(") + ("]" if orders[1].endswith("=") else ")")
    return Several(kind, (sides[0], sides[2]))


def _both(text: str) -> Several | None:
    """`x > 1 and x < 3` as an interval."""
    sides = re.split(r"\sand\s", text)
    names = {name for side in sides for name in re.findall(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", side)}
    if len(sides) != 2 or len(names) != 1:
        return None
    low, high = sorted(map(_interval, sides), key=lambda one: one is not None and one.items[0] == "-\\infty")
    if low is None or high is None or low.items[1] != "\\infty" or high.items[0] != "-\\infty":
        return None
    return Several(low.kind[0] + high.kind[1], (low.items[0], high.items[1]))


def _set_of(items: Sequence[str]) -> Several:
    r"""A set; `1 \pm x` is two of its values, and intervals joined by `or` are a union."""
    names = {name for item in items if (name := sides_of(item)[0])}
    values: list[Value] = []
    for item in items:
        if len(names) == 1:
            item = sides_of(item)[1]  # a repeated `x =`
        both = [item] if not _PLUS_MINUS.search(item) else [_one_sign(item, sign) for sign in "+-"]
        for value in map(shaped, both):
            values += value.items if isinstance(value, Several) and value.kind == "set" else [value]
    solved = all(_RELATION.search(item) for item in items)
    return Several("union" if solved else "set", tuple(values))


def _one_sign(item: str, sign: str) -> str:
    return _PLUS_MINUS.sub(lambda found: sign if found[0] == "\\pm" else "+-"["-+".index(sign)], item)


def _bare_group(text: str) -> str:
    """Without parentheses, brackets or braces around a single value."""
    while True:
        text = text.strip().strip("$").strip()
        pairs = (("(", ")"), ("[", "]"), ("{", "}"))
        inner = next((inner for pair in pairs if (inner := _enclosed(text, *pair)) is not None), None)
        if inner is None or not inner.strip() or len(_split(inner, _SEPARATOR)) > 1:
            return text
        text = inner


def _enclosed(text: str, opening: str, closing: str) -> str | None:
    """What stands between a pair of brackets that encloses the whole text, or None."""
    if not (text.startswith(opening) and text.endswith(closing)) or len(text) < len(opening + closing):
        return None
    inner = text[len(opening) : -len(closing)]
    depth = 0
    for match in re.finditer(r"\\?[(){}\[\]]", inner):
        depth += 1 if match[0][-1] in "({[" else -1
        if depth < 0:
            return None
    return inner


def _is_single(text: str) -> bool:
    return re.fullmatch(r"-?[\d.]+%?|-?\\?[a-zA-Z]+", text) is not None


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts of a text between separators outside all brackets."""
    parts, start, depth = [], 0, 0
    position = 0
    while position < len(text):
        if text.startswith("\\begin", position):
            end = text.find("\\end", position)
            position = end if end > position else len(text)
            continue
        sign = text[position]
        if sign in "({[":
            depth += 1
        elif sign in ")}]":
            depth -= 1
        elif depth <= 0 and (match := separator.match(text, position)) and match[0]:
            parts.append(text[start:position])
            start = position = match.end()
            continue
        position += 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()] or [""]
