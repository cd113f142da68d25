"""What is asked of an engine and what comes back: plain values, which cross process boundaries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stasc_ray import config
from stasc_ray.config import hashing
from stasc_ray.recipes.trace import TokenLogprob

CERTAINTY_TOKENS = 20
"""As many as vLLM gives by default; all of the vocabulary would be 50,000 numbers a token."""
SEED_SPACING = 1 << 12  # vLLM gives the children of `n` the seeds s, s + 1, ...


@dataclass(frozen=True)
class Sample:
    """One generated text."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    """`stop` (end-of-turn token) or `length` (max_tokens or the context was full)."""
    logprob: float | None = None
    """Sum of its tokens' log-probabilities at temperature 1, if the request asked for it."""
    certainty: float | None = None
    """Self-certainty (arXiv 2502.18581), if the request asked for it: over the tokens the mean of
    KL(uniform || p), here over the `CERTAINTY_TOKENS` likeliest tokens at each place: -mean(log(K p))."""
    tokens: tuple[TokenLogprob, ...] = ()
    """Its tokens one by one, if the request asked for them."""
    first_token_s: float | None = field(default=None, compare=False)
    """Seconds from its request to its first token, if the engine is watched."""
    token_s: float | None = field(default=None, compare=False)
    """Mean seconds between two of its tokens, if the engine is watched and there are two."""


class RefusedError(ValueError):
    """vLLM does not do what a request asks."""


@dataclass(frozen=True)
class FinalTurn:
    """What the endpoint may ask of the turn that writes the final answer. Stop strings and schemas need an
    engine with a tokenizer (`EngineSpec.tokenizer`).
    """

    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    schema: str | None = None
    """A JSON schema, as JSON, that the whole text follows."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits, by token id."""
    top_logprobs: int | None = None
    """Gives the tokens one by one, each with so many of the likeliest at its place."""


NOTHING_MORE = FinalTurn()


@dataclass(frozen=True)
class Load:
    """How busy an engine is."""

    running: int = 0
    """Sequences in its batch."""
    waiting: int = 0
    """Sequences that wait for room in it."""
    kv_cache_usage: float = 0.0
    """Share of the KV cache's blocks that sequences hold, 0 to 1."""


@dataclass(frozen=True)
class Request:
    """Sampling of one prompt: `n` samples with the values of `sampling`; `seed` is spaced by
    `SEED_SPACING`.
    """

    sampling: config.Sampling
    n: int
    seed: int
    logprob: bool = False
    """Whether the samples come with their log-probability."""
    certainty: bool = False
    """Whether they come with their self-certainty too."""
    final: FinalTurn = NOTHING_MORE


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on the engine's model. Name, number and folder are its own for ever: vLLM's caches go by
    them.
    """

    name: str
    number: int
    """1 or more."""
    folder: str


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """`text` before the first stop string, and whether there was one."""
    ends = [end for one in stop if (end := text.find(one)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def request_seed(*parts: object) -> int:
    """Seed in [0, 2**62) from whatever identifies a request, a multiple of SEED_SPACING so that children
    never collide.
    """
    return hashing.number("\x1f".join(map(str, parts))) >> 2 & ~(SEED_SPACING - 1)
