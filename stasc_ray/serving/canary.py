"""The canary: log-probabilities of the trainer that an engine must reproduce before it answers."""

import json
from pathlib import Path
from typing import Any, TypedDict

from stasc_ray import config
from stasc_ray.generation.samples import Request
from stasc_ray.serving.engines import EngineHandle


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


def read_canary(run_folder: Path, manifest: dict[str, Any]) -> Canary | None:
    """A version's canary; None if the manifest names none, as for the base model.

    Raises:
        ValueError: it is named, but missing or not readable.
    """
    if manifest.get("canary") is None:
        return None
    try:
        canary = json.loads((run_folder / manifest["canary"]).read_text(encoding="utf-8"))
        if not canary["prompts"]:
            raise ValueError("it holds no prompts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"canary: expected {manifest['canary']}, found {error}") from error
    return canary


async def verify(engine: EngineHandle, canary: Canary | None, tolerance: float) -> str:
    """How the engine was verified, in words.

    Raises:
        CanaryError: its log-probabilities are not those that the trainer computed.
    """
    probe = Request(config.Sampling(temperature=0.0, max_tokens=1), 1, 0)
    if canary is None:
        await engine.generate(list(engine.chat.tokenizer.encode("probe", add_special_tokens=False)), probe)
        return "answered a probe (this version has no canary)"
    differences: list[float] = []
    for prompt in canary["prompts"]:
        found = (await engine.logprobs(prompt["token_ids"]))[prompt["n_prompt"] - 1 :]
        differences += [abs(a - b) for a, b in zip(found, prompt["logprobs"], strict=True)]
    mean = sum(differences) / len(differences)
    if not mean <= tolerance:  # NaN is refused too
        raise CanaryError(
            f"canary: expected log-probabilities within {tolerance:g} of the trainer's, "
            f"found a mean difference of {mean:.4g}"
        )
    await engine.generate(canary["prompts"][0]["token_ids"], probe)
    return f"canary: mean difference of log-probabilities {mean:.2g}, tolerance {tolerance:g}"


def tolerance(full_precision: bool) -> float:
    """Mean absolute difference that float32 in another order, or 16-bit arithmetic, explains."""
    return 0.01 if full_precision else 0.1
