"""Mathematics as people type it, written in ASCII and LaTeX: signs, digits and fractions of Unicode. Pure."""

import re
import unicodedata

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2007\u2009\u200a\u202f\u2005\u2006", " "),
        **dict.fromkeys("\u200b\u200e\u200f\u2060\ufeff\u00ad", ""),
        **dict.fromkeys("\u201c\u201d\u201e\u300c\u300d\u300e\u300f\u00ab\u00bb", '"'),
        **dict.fromkeys("\u00b0\u00ba", r"^\circ "),
        **dict.fromkeys("\u00b7\u22c5\u2219", r"\cdot "),
        **dict.fromkeys("\u2248\u2243\u2245", r"\approx "),
        **dict.fromkeys("\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u20ba\u20aa\uffe5", "$"),
        "\u00d7": r"\times ",
        "\u00f7": "/",
        "\u2044": "/",
        "\u2215": "/",
        "\u221e": r"\infty ",
        "\u2264": r"\le ",
        "\u2a7d": r"\le ",
        "\u2265": r"\ge ",
        "\u2a7e": r"\ge ",
        "\u2260": r"\neq ",
        "\u00b1": r"\pm ",
        "\u222a": r"\cup ",
        "\u2229": r"\cap ",
        "\u2208": r"\in ",
        "\u2205": r"\emptyset ",
        "\u211d": r"\mathbb{R}",
        "\u2026": r"\ldots ",
        "\u3002": ".",
        "\u3001": ",",
        "\u066b": ".",
        "\u066c": ",",
        "\u066a": "%",
        "\u2019": "'",
        "\u2032": "'",
        "\u27e8": "(",
        "\u27e9": ")",
    }
)
_GREEK = {
    chr(code): "\\" + unicodedata.name(chr(code)).split()[-1].lower().replace("lamda", "lambda") + " "
    for code in (*range(0x3B1, 0x3C2), *range(0x3C3, 0x3CA))
}
_RAISED = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207f", "0123456789+-n"
)
_LOWERED = str.maketrans("\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089", "0123456789")
_RAISED_RUN = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b\u207f]+")
_LOWERED_RUN = re.compile("[\u2080-\u2089]+")
_VULGAR = re.compile(r"(\d*)\s?([\u00bc-\u00be\u2150-\u215e])")
_RANGE = re.compile(r"(?<=\d)\s*[\u2013\u2014]\s*(?=\d)")
# As a sign; between words it is a dash.
_LONG_MINUS = re.compile(r"(?<![^\s(\[{=:<$])[\u2013\u2014](?=[\d.])")
_WIDE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_BESIDE_UNSPACED = re.compile(rf"(?<=[{_WIDE}])(?=[\d\\$(-])|(?<=[\d)}}%$])(?=[{_WIDE}])")
_ROOT = re.compile("([\u221a\u221b])\\s*(\\d+(?:\\.\\d+)?|[a-zA-Z])?")
_WORD_COMMANDS = re.compile(r"(?<![\\a-zA-Z])(sqrt|pi|infty|theta|sin|cos|tan|ln|log|binom|frac)(?![a-zA-Z])")
_SPACES = re.compile(
    r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![a-zA-Z])|\\(?:left|right|displaystyle|big|Big)(?![a-zA-Z])"
)
_GROUPS = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?:\{,\}|,)\d{3})+(?![\d]|,\d)")
_SPACED_GROUPS = re.compile(r"(?<![\d.,/])[1-9]\d{0,2}(?: \d{3})+(?![\d/]| \d)")

_SPELLED = [
    (re.compile(pattern), spelled)
    for pattern, spelled in (
        (r"\s*\b(?:percent|per cent)\b", "%"),
        (r"(?<![\d)}])(\s|^)(?:minus|negative)\s+(?=\d)", r"\1-"),
        (r"(?<![\\a-zA-Z])infinity(?![a-zA-Z])", r"\\infty"),
        (r"(?<=[\d)%])\s*x\s*(?=\$?\d)", r" \\times "),
        (r"(?<=[\w)])\*\*(?=[\w(])", "^"),
        (r"(\^\s*\{?\s*\\circ\s*\}?)\s*[CF](?![a-zA-Z])", r"\1"),
        (r"\{\s*([^{}\s]+)\s*\\choose\s*([^{}\s]+)\s*\}", r"\\binom{\1}{\2}"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"(?<=\d)\s+dozen\b", r" \\times 12"),
        (r"(?<=\d)\s+lakhs?\b", r" \\times 10^{5}"),
        (r"(?<=\d)\s+crores?\b", r" \\times 10^{7}"),
        (r"(\d\.\d*?)(\d)\2{2,}\s*(?:\.{3}|\\ldots)\s*", r"\1\\overline{\2}"),
        *((rf"(?<=\d)\s*{name}\b", rf" \\times 10^{{{zeros}}}")
          for name, zeros in (("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))),
    )
]  # fmt: skip
"""What people spell with words or plain letters."""


def clean(text: str) -> str:
    """Write Unicode's signs, digits and fractions as ASCII and LaTeX; digit groups become plain digits."""
    if not text.isascii():
        text = _RANGE.sub(" to ", text)
        text = _VULGAR.sub(_vulgar, text)
        text = _RAISED_RUN.sub(lambda run: "^{" + run[0].translate(_RAISED) + "}", text)
        text = _LOWERED_RUN.sub(lambda run: "_{" + run[0].translate(_LOWERED) + "}", text)
        text = _ROOT.sub(_spell_root, text)
        text = _LONG_MINUS.sub("-", text)
        text = text.translate(_SIGNS)
        text = "".join(
            _GREEK.get(sign, str(unicodedata.digit(sign)) if sign.isdecimal() else sign) for sign in text
        )
        text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
        text = "".join(sign for sign in text if unicodedata.category(sign)[0] != "M")  # vowel signs of words
        text = _BESIDE_UNSPACED.sub(" ", text)
    text = (
        text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\$", "").replace("\\%", "%")
    )
    text = text.replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    text = re.sub(r",\\!\s*(?=\d{3})", ",", text).replace("\\!", "")
    text = _SPACES.sub(" ", text)
    text = _GROUPS.sub(_ungrouped, text)
    text = _SPACED_GROUPS.sub(lambda group: group[0].replace(" ", ""), text)
    for pattern, spelled in _SPELLED:
        text = pattern.sub(spelled, text)
    return _WORD_COMMANDS.sub(r"\\\1", text)


def _ungrouped(match: re.Match[str]) -> str:
    """1,234 is a number, and (1,234) a pair."""
    around = match.string[match.start() - 1 : match.start()] + match.string[match.end() : match.end() + 1]
    return match[0] if around in ("()", "(]", "[)", "[]") else re.sub(r"\D", "", match[0])


def _vulgar(match: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKC", match[2]).split("\u2044")
    return f"{match[1]}\\frac{{{top}}}{{{bottom}}}"


def _spell_root(match: re.Match[str]) -> str:
    root = "\\sqrt" if match[1] == "\u221a" else "\\sqrt[3]"
    return root + (f"{{{match[2]}}}" if match[2] else "")
