"""Hashes that are the same in every process and on every machine, unlike Python's `hash` of a text.

Splits, orders, seeds and ids rest on them, so that a resumed run finds what an earlier process chose: never
change a result.
"""

import hashlib


def digest(text: str, size: int = 8) -> bytes:
    """BLAKE2b of a text in UTF-8, `size` bytes.

    Raises:
        UnicodeEncodeError: a lone surrogate.
    """
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def number(text: str) -> int:
    """An integer in [0, 2**64)."""
    return int.from_bytes(digest(text), "big")


def fraction(text: str) -> float:
    """A number in [0, 1). A float there holds 53 bits, so the result never rounds up to 1."""
    return (number(text) >> 11) / 2**53


def sha256(text: str) -> bytes:
    """SHA-256 of a text in UTF-8, 32 bytes; a lone surrogate counts as a question mark."""
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
