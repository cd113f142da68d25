"""What is asked of an engine and what comes back: plain values, which cross process boundaries."""

from dataclasses import dataclass, field

from stasc_ray import config
from stasc_ray.config import hashing

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
    first_token_s: float | None = field(default=None, compare=False)
    """Seconds from its request to its first token, if the engine is watched."""
    token_s: float | None = field(default=None, compare=False)
    """Mean seconds between two of its tokens, if the engine is watched and there are two."""


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


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on the engine's model. Name, number and folder are its own for ever: vLLM's caches go by
    them.
    """

    name: str
    number: int
    """1 or more."""
    folder: str


def request_seed(*parts: object) -> int:
    """Seed in [0, 2**62) from whatever identifies a request, a multiple of SEED_SPACING so that children
    never collide.
    """
    return hashing.number("\x1f".join(map(str, parts))) >> 2 & ~(SEED_SPACING - 1)
