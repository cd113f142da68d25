"""The values of mathematical expressions: exact if they are rational, else to 60 digits. Pure."""

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from stasc_ray.tasks.math.reading import Node

MAX_BITS = 200_000
"""Of a number that is computed exactly; 1/2006! has 19,000."""


class TooBig(Exception):
    """The value has too many digits to compute exactly."""


def exact(node: Node) -> Fraction | None:
    """Its value if that is rational and can be computed without rounding, else None.

    Raises:
        TooBig: the value has too many digits.
    """
    kind, *parts = node
    if kind == "number":
        return parts[0]
    if kind in ("symbol", "constant"):
        return None
    values = [exact(part) for part in parts]
    if any(value is None for value in values):
        return None
    try:
        return _EXACT.get(kind, lambda *_: None)(*values)
    except (ZeroDivisionError, ValueError):
        return None


def symbols(node: Node) -> set[str]:
    """The names of its variables."""
    if node[0] == "symbol":
        return {node[1]}
    return set().union(*(symbols(part) for part in node[1:] if isinstance(part, tuple)))


def rounded_alike(text: str, value: Any) -> bool:
    """Whether the decimal `text`, of 6 places and digits at least, is the real `value` rounded there."""
    decimal = re.fullmatch(r"-?(\d*)\.(\d+)", text)
    if not decimal or len(decimal[2]) < 6 or len((decimal[1] + decimal[2]).lstrip("0")) < 6:
        return False
    if value.imag != 0:
        return False
    return abs(Fraction(text) - Fraction(str(value.real))) <= Fraction(1, 2 * 10 ** len(decimal[2]))


def equal_values(left: Node, right: Node) -> bool:
    """Whether two expressions have the same value, wherever their variables are: computed to 60 digits at
    four points.
    """
    names = sorted(symbols(left) | symbols(right))
    agreed = 0
    for point in range(4 if names else 1):
        pair = [_at_point(node, names, point) for node in (left, right)]
        if None in pair:
            if pair != [None, None]:
                return False
            continue
        if not (_close(*pair) or all(_vanishes(node, names, point) for node in (left, right))):
            return False
        agreed += 1
    return agreed > 0


def proportional(left: Node, right: Node) -> bool:
    """Whether one expression is a constant multiple of the other, so that both are 0 at the same points."""
    names = sorted(symbols(left) | symbols(right))
    if symbols(left) != symbols(right) or not names:
        return False
    return equal_values(
        ("divide", left, _with_fixed(left, names)), ("divide", right, _with_fixed(right, names))
    )


def value_of(node: Node) -> Any:
    """The value of a constant expression, as an mpmath complex number of 60 digits, or None."""
    return None if symbols(node) else _at_point(node, [], 0)


def _with_fixed(node: Node, names: list[str]) -> Node:
    """The expression with a number for each of its variables."""
    if node[0] == "symbol":
        return ("number", Fraction(names.index(node[1]) * 2 + 3, 5))
    return (
        node[0],
        *(_with_fixed(part, names) if isinstance(part, tuple) else part for part in node[1:]),
    )


_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59)


def _at_point(node: Node, names: list[str], point: int, digits: int = 60) -> Any:
    """Its value at one of four fixed points, as an mpmath number, or None where it has none."""
    import mpmath

    # Square roots of primes: no small expression vanishes there by chance.
    scale = (1, -1, 7, -3)[point]
    with mpmath.workdps(digits):
        at = {
            name: mpmath.sqrt(_PRIMES[(5 * number + point) % len(_PRIMES)]) / scale
            for number, name in enumerate(names)
        }
        try:
            value = mpmath.mpc(_numeric(node, at, mpmath))
        except (ZeroDivisionError, ValueError, TypeError, OverflowError, TooBig):
            return None
        return value if mpmath.isfinite(value) else None


def _close(left: Any, right: Any) -> bool:
    """Equal to 40 digits, relative to the larger."""
    return abs(left - right) <= max(abs(left), abs(right)) * 1e-40


def _vanishes(node: Node, names: list[str], point: int) -> bool:
    r"""Whether its value is 0 but for rounding (\sin\pi): then it shrinks with more digits, and e^{-200} does
    not.
    """
    value, finer = (_at_point(node, names, point, digits) for digits in (60, 120))
    return abs(value) < 1e-45 and abs(finer) <= abs(value) * 1e-30


def _numeric(node: Node, at: Mapping[str, Any], mp: Any) -> Any:
    kind, *parts = node
    if kind == "number":
        return mp.mpf(parts[0].numerator) / parts[0].denominator
    if kind == "symbol":
        return at[parts[0]]
    if kind == "constant":
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[parts[0]]
    values = [_numeric(part, at, mp) for part in parts]
    if kind == "power" and abs(values[1]) * max(1, abs(mp.log(values[0])) if values[0] else 1) > 1e5:
        raise TooBig
    if kind in ("factorial", "exp", "sinh", "cosh", "tanh") and abs(values[0]) > 1e5:
        raise TooBig
    return _numeric_operation(kind, values, mp)


def _numeric_operation(kind: str, values: list[Any], mp: Any) -> Any:
    first, second = values[0], values[-1]
    table: dict[str, Callable[[], Any]] = {
        "add": lambda: first + second,
        "multiply": lambda: first * second,
        "divide": lambda: first / second,
        "negative": lambda: -first,
        "power": lambda: first**second,
        "root": lambda: _root(first, second, mp),
        "abs": lambda: abs(first),
        "floor": lambda: mp.floor(first),
        "ceil": lambda: mp.ceil(first),
        "factorial": lambda: mp.factorial(first),
        "binomial": lambda: mp.binomial(first, second),
        "logarithm": lambda: mp.log(second) / mp.log(first),
        "degrees": lambda: first * mp.pi / 180,
        "ln": lambda: mp.log(first),
        "arcsin": lambda: mp.asin(first),
        "arccos": lambda: mp.acos(first),
        "arctan": lambda: mp.atan(first),
    }
    return table[kind]() if kind in table else getattr(mp, kind)(first)


def _root(degree: Any, of: Any, mp: Any) -> Any:
    # The cube root of -8 is -2, not the complex one.
    if mp.im(of) == 0 and mp.re(of) < 0 and degree == mp.floor(mp.re(degree)) and int(mp.re(degree)) % 2:
        return -mp.root(-of, int(mp.re(degree)))
    return of ** (1 / degree)


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = _exact_root(Fraction(exponent.denominator), base) if exponent.denominator < 100 else None
        return None if root is None else _exact_power(root, Fraction(exponent.numerator))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > MAX_BITS and abs(base) not in (0, 1):
        raise TooBig
    return base ** int(exponent)


def _exact_root(degree: Fraction, of: Fraction) -> Fraction | None:
    if degree.denominator != 1 or not 0 < degree < 100 or (of < 0 and degree % 2 == 0):
        return None
    parts = [_whole_root(abs(number), int(degree)) for number in (of.numerator, of.denominator)]
    if None in parts:
        return None
    root = Fraction(parts[0] or 0, parts[1] or 1)
    return -root if of < 0 else root


def _whole_root(number: int, degree: int) -> int | None:
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= number else (low, middle - 1)
    return low if low**degree == number else None


def _whole(value: Fraction, limit: int = 10_000) -> int:
    if value.denominator != 1 or value < 0:
        raise ValueError("expected a whole number")
    if value > limit:
        raise TooBig
    return int(value)


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "add": lambda a, b: a + b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "negative": lambda a: -a,
    "power": _exact_power,
    "root": _exact_root,
    "abs": lambda a: abs(a),
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
    "factorial": lambda a: Fraction(math.factorial(_whole(a))),
    "binomial": lambda a, b: Fraction(math.comb(_whole(a), _whole(b))),
}
