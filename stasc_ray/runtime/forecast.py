"""What a run will take: tokens and seconds of each stage, from a small run's figures; and what it took. Pure.

A pass of rollouts takes its engines' start, and for each token, of prompts or generated, the same time. A
fine-tune takes its start and export, and for each token that goes through the model the same time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stasc_ray import config

MEASURED = ("rollouts", "evaluation", "examples", "finetune")
"""Stages that have a duration in metrics.jsonl."""


@dataclass(frozen=True)
class Asked:
    """What one question costs, on average: tokens of the prompts and of the texts of all its turns."""

    prompt_tokens: float = 0.0
    generated_tokens: float = 0.0
    texts: float = 0.0


@dataclass(frozen=True)
class Learnt:
    """What is learnt of one train question, on average."""

    kept: float
    """Examples, of M0's texts."""
    kept_if_right: float
    """Examples, if every answer were right: what a model that learns comes nearer to."""
    tokens: float
    """Of one example, through the model."""
    trained_tokens: float
    """Of one example, with loss."""


@dataclass(frozen=True)
class Speeds:
    """What a small run took, in seconds; rates are those of all its engines or workers together."""

    opening_s: float
    """Ray, checks, questions."""
    first_start_s: float
    """Until the first engine was up, in the first pass."""
    later_start_s: float
    """In the pass after a fine-tune."""
    pass_s: float
    """What a pass takes besides, whatever the number of its tokens."""
    tokens_per_s: float
    """Of prompts and generated."""
    engines: int
    """That made that rate."""
    finetune_s: float
    """Encoding, start, export and end of a fine-tune."""
    trained_per_s: float
    """Tokens through the model."""
    examples_s: float
    evaluation_s: float


@dataclass(frozen=True)
class Sizes:
    """What the arithmetic needs to know of a run. `base` is M0, `later` any model after it."""

    questions: Mapping[str, int]
    """By split."""
    base: Mapping[str, Asked]
    """By split."""
    later: Mapping[str, Asked]
    learnt: Learnt


@dataclass(frozen=True)
class Stage:
    """One stage of a run; `seconds` is None where nothing was measured."""

    stage: str
    iteration: int
    prompt_tokens: float = 0.0
    generated_tokens: float = 0.0
    trained_tokens: float = 0.0
    """With loss."""
    model_tokens: float = 0.0
    """Through the model in training."""
    seconds: float | None = None


def order(iterations: int) -> list[tuple[str, int]]:
    """The stages of a run, as algorithm.py runs them."""
    found = [("rollouts", 0), ("evaluation", 0)]
    for n in range(1, iterations + 1):
        found += [("examples", n), ("finetune", n), ("rollouts", n), ("evaluation", n)]
    return found


def forecast(
    settings: config.Config, sizes: Sizes, speeds: Speeds | None = None, engines: int = 1
) -> list[Stage]:
    """The stages of a run with what they will take.

    The first iteration learns from M0's texts, which the small run has seen. Later ones lie between those
    shares of examples and what would be kept if all answers were right: the middle is taken.

    Args:
        speeds: None: tokens only.
        engines: that the run will have; their rate is that of the small run's times engines.
    """
    section, found = settings.algorithm, []
    for stage, n in order(section.iterations):
        if stage == "rollouts":
            found.append(_pass(n, section.iterations, sizes, speeds, engines))
        elif stage == "finetune":
            found.append(_finetune(n, settings.finetune, sizes, speeds))
        else:
            seconds = getattr(speeds, f"{stage}_s") if speeds else None
            found.append(Stage(stage, n, seconds=seconds))
    return found


def _pass(n: int, iterations: int, sizes: Sizes, speeds: Speeds | None, engines: int) -> Stage:
    asked = sizes.later if n else sizes.base
    splits = [split for split in sizes.questions if split != "train" or n < iterations]
    prompt, generated = (
        sum(sizes.questions[split] * getattr(asked[split], name) for split in splits)
        for name in ("prompt_tokens", "generated_tokens")
    )
    if speeds is None:
        return Stage("rollouts", n, prompt, generated)
    rate = speeds.tokens_per_s * engines / speeds.engines
    start = speeds.later_start_s if n else speeds.first_start_s
    return Stage(
        "rollouts", n, prompt, generated, seconds=start + speeds.pass_s + (prompt + generated) / rate
    )


def _finetune(n: int, finetune: config.Finetune, sizes: Sizes, speeds: Speeds | None) -> Stage:
    learnt = sizes.learnt
    kept = learnt.kept if n == 1 else (learnt.kept + learnt.kept_if_right) / 2
    passes = float(finetune.epochs)
    each = sizes.questions.get("train", 0) * kept * learnt.trained_tokens
    if finetune.trained_tokens is not None:
        passes = finetune.trained_tokens / each if each else 0.0
    through = sizes.questions.get("train", 0) * kept * learnt.tokens * passes
    seconds = speeds.finetune_s + through / speeds.trained_per_s if speeds else None
    return Stage("finetune", n, trained_tokens=each * passes, model_tokens=through, seconds=seconds)


def engine_speed(passes: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(seconds besides, tokens per second) of passes of a smaller and, perhaps, a larger number of questions.

    A small pass leaves engines half empty. So the rate is what the larger pass did beyond the smaller, if it
    is at least twice as large, but at most four times the larger one's own.

    Args:
        passes: (tokens, seconds) of each, the smaller first.
    """
    (small, took), (large, longer) = passes[0], passes[-1]
    own = large / longer
    if large < 2 * small or longer <= took:
        return 0.0, own
    rate = min((large - small) / (longer - took), 4 * own)
    return max(0.0, longer - large / rate), rate


def seconds_of(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """How long the stages took that metrics.jsonl has; those an earlier attempt had begun count as if done
    at once.
    """
    found = {}
    for line in lines:
        stage, seconds = line["stage"], line.get(f"{line['stage']}/duration_s")
        if stage in MEASURED and isinstance(seconds, int | float):
            resumed = line.get("rollouts/resumed_questions", 0)
            asked = line.get("rollouts/questions", 0)
            share = (asked - resumed) / asked if asked else 1.0
            found[stage, line["iteration"]] = seconds / share if share > 0 else seconds
    return found


def seconds_after(
    stage: str,
    iteration: int,
    iterations: int,
    lines: Sequence[Mapping[str, Any]],
    planned: Mapping[tuple[str, int], float],
) -> float | None:
    """What a run still takes after one of its stages.

    Each later stage takes what the last one of its kind took. If there was a plan, its differences between
    stages count, corrected by how the last one of the kind went; without one the last pass, which asks no
    train questions, takes its share of tokens.

    Args:
        lines: of metrics.jsonl.
        planned: seconds by stage and iteration; empty: there was no plan.

    Returns:
        Seconds; None as long as a kind of stage was neither measured nor planned.
    """
    every = order(iterations)
    if (stage, iteration) not in every:
        return None
    took, total = seconds_of(lines), 0.0
    shares = [line["rollouts/train_share"] for line in lines if line.get("rollouts/train_share")]
    for kind, n in every[every.index((stage, iteration)) + 1 :]:
        last = max((m for name, m in took if name == kind), default=None)
        plan = planned.get((kind, n))
        if last is None:
            if plan is None and kind in ("rollouts", "finetune"):
                return None
            total += plan or 0.0
        elif plan is not None and planned.get((kind, last)):
            total += plan * took[kind, last] / planned[kind, last]
        else:
            less = shares[-1] if shares and kind == "rollouts" and n == iterations else 0.0
            total += took[kind, last] * (1 - less)
    return total


def planned_seconds(plan: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """Seconds by stage and iteration of a plan.json; empty if it was made without a calibration."""
    rows = plan.get("stages", [])
    return {(row["stage"], row["iteration"]): row["seconds"] for row in rows if row["seconds"] is not None}


@dataclass(frozen=True)
class Against:
    """A planned figure and the measured one, over the stages that are done."""

    what: str
    planned: float
    measured: float

    @property
    def error(self) -> float | None:
        """(planned - measured) / measured."""
        return (self.planned - self.measured) / self.measured if self.measured else None


COMPARED = {
    "prompt tokens": ("rollouts", "prompt_tokens", "rollouts/prompt_tokens"),
    "generated tokens": ("rollouts", "generated_tokens", "rollouts/generated_tokens"),
    "trained tokens": ("finetune", "trained_tokens", "finetune/trained_tokens"),
}


def against(plan: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Iterator[Against]:
    """A plan's figures beside those of the stages that a run has finished."""
    rows = {(row["stage"], row["iteration"]): row for row in plan["stages"]}
    by_stage = {(line["stage"], line["iteration"]): line for line in lines}
    done = [place for place in rows if place in by_stage]
    for what, (stage, name, metric) in COMPARED.items():
        places = [place for place in done if place[0] == stage]
        if places:
            measured = sum(by_stage[place].get(metric, 0) for place in places)
            yield Against(what, sum(rows[place][name] for place in places), measured)
    took, planned = seconds_of(lines), planned_seconds(plan)
    for kind, what in (("rollouts", "seconds of rollouts"), ("finetune", "seconds of fine-tuning")):
        places = [place for place in took if place in planned and place[0] == kind]
        if places:
            yield Against(what, sum(planned[p] for p in places), sum(took[p] for p in places))
    places = [place for place in took if place in planned]
    if places:
        yield Against("seconds of all stages", sum(planned[p] for p in places), sum(took[p] for p in places))


def as_rows(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The stages as plan.json holds them."""
    return [asdict(stage) for stage in stages]
