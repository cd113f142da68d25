r"""The reader of mathematical expressions, in LaTeX or plain text. Pure.

It knows what final answers are made of (numbers, the four operations, powers, roots, fractions, logarithms,
trigonometry, factorials, symbols with subscripts) and refuses everything else. It never skips what it does
not know: a reader that takes `2\sqrt{3}` for 2 pays wrong answers.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

Node = tuple[Any, ...]
"""("number", Fraction), ("symbol", name), ("constant", "pi" | "e" | "i"), or (operation, *Nodes)."""
_MINUS_ONE: Node = ("negative", ("number", Fraction(1)))
MAX_LENGTH = 2000
MAX_DEPTH = 60
_TOKEN = re.compile(
    r"\s+|(?P<number>\d+(?:\.\d*)?|\.\d+)"
    r"|\\(?:mathrm|text|operatorname)\s*\{(?P<named>[a-z]+)\}"
    r"|\\(?P<command>[a-zA-Z]+)|(?P<letter>[a-zA-Z])|(?P<sign>[-+*/^_!(){}\[\]|])"
)
_MIXED = re.compile(
    r"(?<![\d.^_}])(\d+)\s*\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d)(?=\s*[\d{]))\s*(?:\{\s*(\d+)\s*\}|(\d)(?!\d))"
    r"|(?<![\d.^_}])(\d+)[ ~]+(\d+)\s*/\s*(\d+)(?![\d.])"
)
_REPEATING = re.compile(r"(?<![\d.])(\d+)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d{1,5})(?![\w.])")
_IGNORED = frozenset(
    {"left", "right", "displaystyle", "limits", "mleft", "mright", "quad", "qquad", "big", "Big"}
)
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp lg".split()  # noqa: SIM905
)
_GREEK = frozenset(
    """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma
    tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell""".split()  # noqa: SIM905
)
_BARS = {"lvert": "rvert", "vert": "vert", "lfloor": "rfloor", "lceil": "rceil"}


def read(text: str) -> Node | None:
    """The expression in `text`, all of it, or None."""
    if len(text) > MAX_LENGTH:
        return None
    try:
        return _Reader(list(_tokens(_spell_out(text)))).all()
    except (ValueError, IndexError):
        return None


def _spell_out(text: str) -> str:
    """Write mixed numbers, repeating decimals and 4.5e33 with plain operations."""
    text = _REPEATING.sub(_repeating, text)
    text = _SCIENTIFIC.sub(r"(\1 * 10^{\2})", text)
    return _MIXED.sub(_mixed, text)


def _mixed(match: re.Match[str]) -> str:
    whole, top, bottom = (group for group in match.groups() if group is not None)
    # 2\frac{3}{2} is no mixed number; as a product it would be 3, so it is not read at all.
    return f"({whole}+({top})/({bottom}))" if int(top) < int(bottom) else "?"


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, again = match.groups()
    return f"({whole}.{fixed}0 + ({again})/({'9' * len(again)}{'0' * len(fixed)}))"


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            raise ValueError(f"unknown sign {text[position]!r}")
        position = match.end()
        if match.lastgroup == "named":
            name = match["named"]
            yield ("letter", name) if len(name) == 1 else ("command", name)
        elif match.lastgroup == "command":
            command = re.sub(r"^[dt](?=frac$|binom$)", "", match["command"])
            if command not in _IGNORED:
                yield "command", command
        elif match.lastgroup:
            yield match.lastgroup, match[0]
    yield "end", ""


class _Reader:
    """Recursive descent over the tokens. Raises ValueError at the first that it does not know."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    def all(self) -> Node:
        node = self.sum()
        self.expect("end", "")
        return node

    @property
    def next(self) -> tuple[str, str]:
        return self.tokens[self.at]

    def take(self) -> tuple[str, str]:
        self.at += 1
        return self.tokens[self.at - 1]

    def takes(self, *texts: str) -> bool:
        found = self.next[1] in texts and self.next[0] in ("sign", "command")
        self.at += found
        return found

    def expect(self, *token: str) -> None:
        if self.take() != token:
            raise ValueError("unexpected")

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError("too deep")
        node = self.signed()
        while self.next in (("sign", "+"), ("sign", "-")):
            minus = self.take()[1] == "-"
            term = self.product()
            node = ("add", node, ("negative", term) if minus else term)
        self.depth -= 1
        return node

    def signed(self) -> Node:
        if self.takes("-"):
            return ("negative", self.product())
        self.takes("+")
        return self.product()

    def product(self) -> Node:
        node = self.power()
        while True:
            if self.takes("*", "times", "cdot"):
                node = ("multiply", node, self.factor_with_sign())
            elif self.takes("/", "div"):
                node = ("divide", node, self.factor_with_sign())
            elif self.begins_factor() and self.next[0] != "number":
                node = ("multiply", node, self.power())
            else:
                return node

    def factor_with_sign(self) -> Node:
        return ("negative", self.power()) if self.takes("-") else self.power()

    def begins_factor(self) -> bool:
        kind, text = self.next
        if kind == "sign":
            return text in "({["
        if kind == "command":
            return text not in ("times", "cdot", "div", "circ", "degree", *_BARS.values())
        return kind in ("number", "letter")

    def power(self) -> Node:
        node = self.atom()
        while True:
            if self.takes("!"):
                if self.next == ("sign", "!"):
                    raise ValueError("two factorials")
                node = ("factorial", node)
            elif self.takes("degree"):
                node = ("degrees", node)
            elif self.takes("^"):
                if self.is_degree():
                    node = ("degrees", node)
                else:
                    # 2^3^2 is not LaTeX, and its readings differ.
                    node = ("power", node, self.group())
                    if self.next == ("sign", "^"):
                        raise ValueError("two powers")
            else:
                return node

    def is_degree(self) -> bool:
        for spelled in ([("command", "circ")], [("sign", "{"), ("command", "circ"), ("sign", "}")]):
            if self.tokens[self.at : self.at + len(spelled)] == spelled:
                self.at += len(spelled)
                return True
        return False

    def group(self) -> Node:
        """One argument: `{...}`, a sign and a number, or one digit, letter or command."""
        if self.takes("{"):
            node = self.sum()
            self.expect("sign", "}")
            return node
        if self.takes("-"):
            return ("negative", self.atom())
        return self.atom()

    def argument(self) -> Node:
        r"""One argument of \frac: `\frac12` are two of them."""
        kind, text = self.next
        if kind == "number" and len(text) > 1:
            if not text.isdigit():
                raise ValueError("unclear")
            self.tokens[self.at : self.at + 1] = [("number", digit) for digit in text]
        return self.group()

    def atom(self) -> Node:
        kind, text = self.take()
        if kind == "number":
            if self.next == ("sign", "_"):
                raise ValueError("a number in another base")
            return ("number", Fraction(text.rstrip(".") or text))
        if kind == "letter":
            return self.symbol(text)
        if kind == "sign":
            return self.bracket(text)
        if kind == "command":
            return self.command(text)
        raise ValueError("nothing left")

    def bracket(self, opening: str) -> Node:
        closing = {"(": ")", "{": "}", "[": "]", "|": "|"}.get(opening)
        if closing is None:
            raise ValueError(f"nothing begins with {opening}")
        node = self.sum()
        self.expect("sign", closing)
        return ("abs", node) if opening == "|" else node

    def symbol(self, name: str) -> Node:
        if self.takes("_"):
            return ("symbol", f"{name}_{self.subscript()}")
        if name in "fgh" and self.next == ("sign", "("):
            raise ValueError("a function that is not known")
        return ("constant", name) if name in ("e", "i") else ("symbol", name)

    def subscript(self) -> str:
        if not self.takes("{"):
            return self.take()[1]
        parts = []
        while not self.takes("}"):
            kind, text = self.take()
            if kind == "end":
                raise ValueError("open subscript")
            parts.append(text)
        return "".join(parts)

    def command(self, name: str) -> Node:
        if name == "frac":
            return ("divide", self.argument(), self.argument())
        if name == "binom":
            return ("binomial", self.argument(), self.argument())
        if name == "sqrt":
            degree: Node = ("number", Fraction(2))
            if self.takes("["):
                degree = self.sum()
                self.expect("sign", "]")
            return ("root", degree, self.argument())
        if name in _BARS:
            node = self.sum()
            self.expect("command", _BARS[name])
            return ({"lfloor": "floor", "lceil": "ceil"}.get(name, "abs"), node)
        if name == "pi":
            return ("constant", "pi")
        if name in _GREEK:
            return self.symbol(name)
        if name in _FUNCTIONS:
            return self.function(name)
        raise ValueError(f"unknown command {name}")

    def function(self, name: str) -> Node:
        base = self.group() if name == "log" and self.takes("_") else None
        exponent = self.group() if self.takes("^") else None
        if exponent and exponent == _MINUS_ONE and name in ("sin", "cos", "tan"):
            name, exponent = f"arc{name}", None
        of = self.function_argument()
        # log without a base: 10 in school, e in research; its readings differ, so only like is compared.
        if name == "log":
            node: Node = ("logarithm", base or ("symbol", "log"), of)
        else:
            node = ("logarithm", ("number", Fraction(10)), of) if name == "lg" else (name, of)
        return ("power", node, exponent) if exponent else node

    def function_argument(self) -> Node:
        if self.next in (("sign", "("), ("sign", "{")):
            node = self.atom()
            if self.next == ("sign", "^"):
                raise ValueError("unclear what is raised")
            return node
        node = self.power()
        while self.begins_factor() and self.next[0] != "number" and self.next[1] not in (*_FUNCTIONS, "("):
            node = ("multiply", node, self.power())
        return node
