"""What an engine is, whichever model it holds: a plain value, which crosses process boundaries."""

from dataclasses import dataclass, field

from stasc_ray import config

OWNER = "STASC_ENGINE_OWNER"
"""Environment variable: the process that made the engine. vLLM's own processes inherit it."""


@dataclass(frozen=True)
class EngineSpec:
    """What is the same for every model that an engine holds, one after the other."""

    engine: config.Engine
    on_cuda: bool
    model: config.Model = field(default_factory=config.Model)
    gpus: float = 0
    """That Ray reserves for it."""
    lora_rank: int | None = None
    """The largest rank of the adapters that requests will name; None if they name none."""
    threads: int | None = None
    """Of an engine on CPUs; None: its share of its node's cores."""
    seed: int = 0
    tokenizer: bool = False
    """Whether vLLM has the tokenizer too: stop strings and schemas need it. Rollouts ask for neither."""
    sleeps: bool = False
    """Whether it gives its GPU's memory to a trainer between two passes."""
    watched: bool = False
    """Whether it keeps times and its load, for a monitor; that costs a little at each step."""
