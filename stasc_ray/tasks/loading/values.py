"""One value of a raw row as text. Pure: reads and writes nothing."""

import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def normalize(question: str) -> str:
    """The text by which two questions count as the same: composed Unicode, case folded, white space
    collapsed.
    """
    if not question.isascii():
        question = unicodedata.normalize("NFC", question)
    return " ".join(question.casefold().split())


def as_text(value: Any, column: object = None) -> str:
    """Text or number as text without white space around it; None and NaN are empty.

    Numbers are written out, without exponent and without zeros at their end: 3.0 and Decimal("3.00") as `3`,
    0.00001 as `0.00001`. Bytes are text if they are UTF-8. true and false are `yes` and `no`, since nobody
    answers a question with `True`.

    Raises:
        ValueError: infinite, not valid Unicode, or no single value.
    """
    if isinstance(value, str):
        return value.strip() if value.isascii() else _storable(value, column)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if value is None or value != value:
        return ""
    if isinstance(value, (float, Decimal)):
        return _number(value if isinstance(value, Decimal) else Decimal(repr(value)), column)
    if isinstance(value, bytes):
        return _decoded(value, column)
    advice = ""
    if isinstance(value, Mapping) and value:
        advice = f": name one of its keys by a path, such as '{column}.{next(iter(value))}'"
    raise ValueError(
        f"column {column!r}: expected text, a number or a list of them, found {repr(value)[:80]}{advice}"
    )


def _storable(text: str, column: object) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # half a surrogate pair, which JSON can spell but no file can store
        raise ValueError(f"column {column!r}: expected valid Unicode, found {error}") from error
    return text.strip()


def _decoded(value: bytes, column: object) -> str:
    try:
        return value.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"column {column!r}: expected text in UTF-8, found bytes: {error}") from error


def _number(number: Decimal, column: object) -> str:
    if not number.is_finite():
        raise ValueError(
            f"column {column!r}: expected a number, found {number}: no answer could ever match it. Write it "
            "as text (`infinity`) if it is meant"
        )
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def as_list(value: Any) -> list[Any]:
    """A list as it is, None as no elements, anything else as one."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
