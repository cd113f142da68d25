"""The canary: log-probabilities of the trainer that an engine must reproduce before it answers."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypedDict

FILE = "canary.json"
NOISE = 1e-4
"""Nats. Two models nearer than this on the canary's prompts count as the same one."""

Logprobs = Callable[[list[int]], Awaitable[list[float]]]
"""Gives an engine's log-probabilities (T - 1,) of token_ids[1:]."""


class CanaryPrompt(TypedDict):
    """A text; `logprobs` (T - n_prompt,) are of token_ids[n_prompt:], each given all tokens before it."""

    token_ids: list[int]
    n_prompt: int
    logprobs: list[float]


class Canary(TypedDict):
    """What learning/export.py writes into a model's folder."""

    dtype: str
    """Of the weights that the log-probabilities were computed with; the computation is in float32."""
    prompts: list[CanaryPrompt]


class CanaryError(ValueError):
    """The engine does not compute what the trainer computed."""


def read(file: Path) -> Canary:
    """The canary in a file.

    Raises:
        ValueError: it is missing or holds something else.
        OSError: storage is in trouble.
    """
    try:
        canary = json.loads(file.read_text(encoding="utf-8"))
        if not canary["prompts"]:
            raise ValueError("it holds no prompts")
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"canary: expected {file}, found {error}") from error
    return canary


def of_model(model: str) -> Canary | None:
    """The canary in a model's folder; None if it has none, as a base model or a Hub id."""
    file = Path(model) / FILE
    return read(file) if file.is_file() else None


async def difference(logprobs: Logprobs, canary: Canary) -> float:
    """Mean absolute difference of an engine's log-probabilities from the trainer's, in nats."""
    found: list[float] = []
    for prompt in canary["prompts"]:
        of_engine = (await logprobs(prompt["token_ids"]))[prompt["n_prompt"] - 1 :]
        found += [abs(a - b) for a, b in zip(of_engine, prompt["logprobs"], strict=True)]
    return sum(found) / len(found)


def check(found: float, tolerance: float, before: float | None = None) -> None:
    """Refuse an engine that computes something else than the trainer.

    Args:
        found: its `difference`.
        before: its difference while it still held another model. An exchange that did nothing, or half of it,
            leaves an engine near its old model, which may well be within the tolerance: a fine-tune moves
            16-bit log-probabilities by little. So the exchange must at least halve the difference.

    Raises:
        CanaryError: expected and found.
    """
    if not found <= tolerance:  # NaN is refused too
        raise CanaryError(
            f"canary: expected log-probabilities within {tolerance:g} of the trainer's, "
            f"found a mean difference of {found:.4g}"
        )
    if before is not None and found > max(before / 2, NOISE):
        raise CanaryError(
            f"canary: expected the exchange of weights to bring log-probabilities nearer to the trainer's "
            f"than half of {before:.4g}, their mean difference before it, found {found:.4g}"
        )


def tolerance(full_precision: bool) -> float:
    """Mean absolute difference that float32 in another order, or 16-bit arithmetic, explains."""
    return 0.01 if full_precision else 0.1
