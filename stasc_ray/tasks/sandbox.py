"""The embedded world: sums of three numbers, the school method that solves them, and its misconception.

`questions` makes as many questions as asked; train, dev and test are disjoint by construction, because a hash
of the addends alone decides the split. `column_addition` writes the answer column by column, the way the
shipped model does, and can forget carries: that is what the model in `model_path()` learnt in half of its
carries (jobs/pretrain_sandbox.py made it). Reads nothing, writes nothing; standard library only.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

from stasc_ray.config import hashing

SPLITS = {"train": range(0, 8), "dev": range(8, 9), "test": range(9, 10)}
"""Which tenths of all sums belong to which split."""
ADDENDS = 3


def model_path() -> Path:
    """Folder of the tiny chat model that ships with the package (Hugging Face layout).

    Raises:
        FileNotFoundError: the folder is not installed.
    """
    path = Path(str(resources.files("stasc_ray.tasks"))) / "sandbox_model"
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"sandbox: expected the shipped model at {path}, found none; reinstall the package, "
            "or make it with: python jobs/pretrain_sandbox.py"
        )
    return path


def questions(split: str, n: int, seed: int) -> list[dict[str, Any]]:
    """The first `n` questions of a split in the order that `seed` gives; a larger `n` keeps the smaller one's
    rows.

    Args:
        split: `train`, `dev` or `test`. No seed moves a question from one split to another.
        n: number of questions; each occurs once. There are about 10^9, a tenth of them in each of dev and
            test.
        seed: of the order.

    Returns:
        Question rows: id, question, answers, split, documents, choices.

    Raises:
        ValueError: unknown split or negative `n`.
    """
    if split not in SPLITS or n < 0:
        raise ValueError(
            f"sandbox: expected split in {sorted(SPLITS)} and n >= 0, found split {split!r}, n {n}"
        )
    generator = random.Random(f"{seed}/{split}")
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    while len(found) < n:
        addends = draw_addends(generator)
        if split_of(addends) == split:
            found.setdefault(addends, _row(addends, split))
    return list(found.values())


def draw_addends(generator: random.Random) -> tuple[int, ...]:
    """Three numbers, each of two or three digits with equal chance."""
    return tuple(generator.randrange(*generator.choice(((10, 100), (100, 1000)))) for _ in range(ADDENDS))


def split_of(addends: Sequence[int]) -> str:
    """The split a sum belongs to: a hash of its addends in sorted order, so that reordering them changes
    nothing.
    """
    tenth = hashing.number(repr(sorted(addends))) % 10
    return next(name for name, tenths in SPLITS.items() if tenth in tenths)


def question_text(addends: Sequence[int]) -> str:
    """The sum in words: `What is 47 + 385 + 12?`."""
    return f"What is {' + '.join(map(str, addends))}?"


def column_addition(addends: Sequence[int], remember: Callable[[], bool] = lambda: True) -> str:
    """Add by columns from the right, one line per column, then a last line `=444`.

    47 + 385 + 12 is `7+5+2=14`, `4+8+1+1=14`, `3+1=4`, `=444`; whoever forgets the first carry writes
    `4+8+1=13` in the second line and ends at `=434`.

    Args:
        addends: the numbers, none negative.
        remember: asked once for each carry that is due; False forgets it. The default never forgets.
    """
    lines, result, carry = [], "", 0
    columns = list(zip_longest(*(reversed(str(addend)) for addend in addends)))
    for column in columns:
        digits = [digit for digit in column if digit is not None]
        kept = [str(carry)] if carry and remember() else []
        total = sum(map(int, digits + kept))
        lines.append(f"{'+'.join(digits + kept)}={total}")
        result, carry = str(total % 10) + result, total // 10
    return "\n".join([*lines, f"={carry or ''}{result}"])


def solution(question_row: Mapping[str, Any]) -> str:
    """The sum of a sandbox question, worked out by columns with every carry.

    Raises:
        ValueError: the question is no sum of the sandbox.
    """
    text = question_row["question"]
    found = re.fullmatch(r"What is (\d+(?: \+ \d+)+)\?", text)
    if not found:
        raise ValueError(
            f"sandbox: expected a question such as {question_text((47, 385, 12))!r}, found {text!r}: it "
            "works out its own sums alone; for other questions name a function of yours"
        )
    return column_addition([int(addend) for addend in found[1].split(" + ")])


def first_wrong_column(answer: str, question_row: Mapping[str, Any]) -> str:
    """The first line of an answer that is not as in `solution`, such as `4+8+1=13`; "" if all are.

    If the answer ends too early, it is the line that it lacks.

    Raises:
        ValueError: the question is no sum of the sandbox.
    """
    lines = zip_longest(answer.strip().splitlines(), solution(question_row).splitlines())
    return next((said or right or "" for said, right in lines if said != right), "")


def _row(addends: tuple[int, ...], split: str) -> dict[str, Any]:
    return {
        "id": "sandbox-" + "-".join(map(str, addends)),
        "question": question_text(addends),
        "answers": [str(sum(addends))],
        "split": split,
        "documents": [],
        "choices": [],
    }
