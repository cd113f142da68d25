"""The hashes behind seeds, orders, splits and ids, with values recorded before they moved into one module."""

import pytest

from stasc_ray.config import hashing
from stasc_ray.generation.samples import request_seed
from stasc_ray.learning import batches
from stasc_ray.recipes import selection
from stasc_ray.recipes.recipe import Example
from stasc_ray.tasks import canonical, questions, sandbox


def test_each_use_gives_what_it_always_gave() -> None:
    assert request_seed(7, "train/é 1", "initial", 2) == 1925537022759018496
    assert request_seed(0, "a") == 740619162224930816
    assert batches._hash("0/3/é 1") == 6063020030467140145
    example = Example("train/é 1", (2, 3), "i->c", [])
    assert selection.uniform(7, "share", example) == 0.21327331616193002
    assert selection.uniform(0, "balance", example) == 0.34830842142537455
    assert questions._order(7, "dev", "é 1") == b"\xba\xed\xaf\xc7\x1c\x93\x0b\xd7"
    assert canonical._content_hash(["é", "x\u2028", None, ["a"]]) == "37cb92ffc66f7c91842f"
    assert [n for n in range(20) if sandbox.split_of([n, 47, 1]) == "test"] == [3, 7, 13, 16, 18, 19]


def test_the_helpers() -> None:
    assert hashing.number("") == int.from_bytes(hashing.digest(""), "big") == 16476032584258269876
    assert len(hashing.digest("a", 10)) == 10
    assert hashing.sha256("row 1").hex().startswith("96e3051150089bfa")
    assert hashing.sha256("é\ud83d").hex().startswith("a345ee1366118e8a")
    assert all(0 <= hashing.fraction(str(number)) < 1 for number in range(1000))
    with pytest.raises(UnicodeEncodeError):
        hashing.digest("\ud83d")
