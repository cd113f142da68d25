"""Whether two answers in mathematics are the same: texts, words, exact numbers, and shapes of them. Pure.

What needs more than exact arithmetic is left to a function of the caller's.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from stasc_ray.tasks.math.expressions import TooBig, exact
from stasc_ray.tasks.math.reading import read
from stasc_ray.tasks.math.shapes import Several, Value, shaped, sides_of
from stasc_ray.tasks.math.signs import clean
from stasc_ray.tasks.math.text import stated, without_units

Compare = Callable[[str, str], bool | None]
"""Whether two single expressions are equal; None if unknown."""
_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen""".split()  # noqa: SIM905
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_NUMBER_WORDS = {
    **{word: Fraction(value) for value, word in enumerate(_ONES)},
    **{word: Fraction(10 * value) for value, word in enumerate(_TENS, 2)},
    **{
        f"{ten} {_ONES[one]}": Fraction(10 * value + one)
        for value, ten in enumerate(_TENS, 2)
        for one in range(1, 10)
    },
    **{
        "one half": Fraction(1, 2),
        "one third": Fraction(1, 3),
        "three quarters": Fraction(3, 4),
        "two thirds": Fraction(2, 3),
    },
}
_SUBSCRIPT = re.compile(r"-?[\dA-F]+(?:\.\d+)?\s*_\s*\{?\s*([a-z\d]+)\s*\}?")


def equal(answer: str, reference: str, compare: Compare) -> bool | None:
    """Whether the answer states the reference's value; None if `compare` did not know."""
    if _tidy(answer) == _tidy(reference) != "":
        return True
    given = stated(answer)
    if given is None:
        return False
    wanted = reference_expression(reference)
    if not wanted:
        return False
    if _tidy(given) == _tidy(wanted):
        return True
    given, unit = without_units(given)
    wanted, wanted_unit = without_units(wanted)
    if _conflict(_known_units(answer, unit), _known_units(reference, wanted_unit)):
        return False
    return same(shaped(given), shaped(wanted), compare)


def reference_expression(reference: str) -> str:
    """A reference, cleaned as an answer is."""
    return stated(reference) or clean(reference).strip(" .$")


def same(given: Value, wanted: Value, compare: Compare) -> bool | None:
    """Whether two shapes hold equal values."""
    if isinstance(given, str) and isinstance(wanted, str):
        return _same_single(given, wanted, compare)
    given, wanted = (
        Several("set", (value,)) if isinstance(value, str) else value for value in (given, wanted)
    )
    if given.kind != wanted.kind:
        return False
    if given.kind in ("set", "union"):
        names = [_names(one.items) for one in (given, wanted)]
        if names[0] != names[1] and max(map(len, names)) > 1:
            return False  # x = 3, y = 1 is not the set 1, 3
        return _same_set(given.items, wanted.items, compare)
    if len(given.items) != len(wanted.items):
        return False
    return _all(same(left, right, compare) for left, right in zip(given.items, wanted.items, strict=True))


def _names(values: Iterable[Value]) -> set[str]:
    """The names of the values that have one: x and y of `x = 3, y = 1`."""
    return {name for value in values if isinstance(value, str) and (name := sides_of(value)[0])}


def _same_set(given: Sequence[Value], wanted: Sequence[Value], compare: Compare) -> bool | None:
    """Each of one is among the other and the reverse."""
    table = [[same(left, right, compare) for right in wanted] for left in given]
    rows = [_any(row) for row in table]
    columns = [_any(row[number] for row in table) for number in range(len(wanted))]
    return _all([*rows, *columns])


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    return True if True in found else None if None in found else False


def _same_single(given: str, wanted: str, compare: Compare) -> bool | None:
    given, wanted = _without_name(given, wanted)
    if _tidy(given) == _tidy(wanted):
        return True
    words = [_words(text) for text in (given, wanted)]
    if words[0] is not None and words[1] is not None:
        # Of one or two letters, case tells variables apart.
        cased = len(words[0]) < 3 and "\\text" not in given + wanted
        return words[0] == words[1] if cased else words[0].casefold() == words[1].casefold()
    if any(_SUBSCRIPT.fullmatch(text) for text in (given, wanted)):
        return _tidy(given).upper() == _tidy(wanted).upper()
    numbers = [number(text) for text in (given, wanted)]
    if None not in numbers:
        return _same_number(numbers[0], numbers[1])  # type: ignore[arg-type]
    return compare(given, wanted)


def number(text: str) -> tuple[Fraction, bool] | None:
    """(value, is a percentage) of a rational expression, computed exactly, or None."""
    if (word := text.strip().lower().replace("-", " ")) in _NUMBER_WORDS:
        return _NUMBER_WORDS[word], False
    percent = text.rstrip().endswith("%")
    text = re.sub(r"(?:%|\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*$", "", text.strip())
    node = read(text)
    if node is None:
        return None
    try:
        value = exact(node)
    except TooBig:
        return None
    return None if value is None else (value, percent)


def _same_number(given: tuple[Fraction, bool], wanted: tuple[Fraction, bool]) -> bool:
    """28% is 28 and 0.28: the sign is a unit or a factor."""
    if given[0] == wanted[0]:
        return True
    if given[1] == wanted[1]:
        return False
    percent, plain = (given, wanted) if given[1] else (wanted, given)
    return percent[0] / 100 == plain[0]


def _without_name(given: str, wanted: str) -> tuple[str, str]:
    """Drop `x =` where only one has a name or both have the same, and a sum that the answer works out."""
    sides = [sides_of(given), sides_of(wanted)]
    names = [side[0] for side in sides]
    if names[0] is not None and names[1] is not None:
        return (sides[0][1], sides[1][1]) if _tidy(names[0]) == _tidy(names[1]) else (given, wanted)
    if "=" in (wanted if names[1] is None else "") or "=" in (given if names[0] is None else ""):
        return given, wanted
    return sides[0][1], sides[1][1]


def _words(text: str) -> str | None:
    r"""The words of `\text{(C)}`, `Evelyn` or `ellipse`, or None if it is an expression."""
    inner = re.fullmatch(r"\\text\{([^{}]*)\}", text)
    plain = (inner[1] if inner else text).strip(" .,()\"'*")
    if not re.fullmatch(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*", plain):
        return None
    return re.sub(r"^(?:the|an|a)\s+(?=\w)", "", plain, flags=re.IGNORECASE)


_UNITS = (
    "cents cent",
    "dollars dollar",
    "euros euro",
    "inches inch in",
    "feet foot ft",
    "yards yard",
    "miles mile",
    "mm millimeters",
    "cm centimeters centimeter centimetres",
    "meters meter metres m",
    "km kilometers kilometer kilometres",
    "seconds second secs sec",
    "minutes minute mins min",
    "hours hour hrs hr h",
    "days day",
    "weeks week",
    "months month",
    "years year",
    "grams gram g",
    "mg milligrams",
    "ml milliliters",
    "liters liter litres l",
    "kg kilograms",
    "pounds pound lb lbs",
    "ounces ounce oz",
    "degrees degree",
    "radians",
    "square squared sq",
    "cubic",
)


def _known_units(text: str, words: str) -> set[str]:
    """The units that the words behind a number name, or its signs."""
    found = set(re.findall(r"[a-z]+", words.lower()))
    if "\\$" in text or text.count("$") == 1:
        found.add("dollars")
    if "circ" in text or "\u00b0" in text:
        found.add("degrees")
    return {unit for unit in _UNITS if found & set(unit.split())}


def _conflict(given: set[str], wanted: set[str]) -> bool:
    """Whether both units are known and they are different ones. Money per day is money."""
    money = "dollars dollar"
    return bool(given and wanted and given != wanted and not (money in given and money in wanted))


def _tidy(text: str) -> str:
    """Without space, delimiters and the braces of single signs: equal texts are equal values."""
    text = re.sub(r"(?<=\d)\s+(?=\d)", "_ _", text)  # 7 2 is not 72
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])|[\s$]", "", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    return text if "..." in text else text.strip(".").removeprefix("+")
