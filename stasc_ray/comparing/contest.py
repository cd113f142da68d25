"""Versions x strategies on the same questions, at equal generated tokens: `stasc compare CONFIG`.

A strategy is a policy (recipes/policies.py) with as many samples or rounds as the budget pays for. Each one
is a pass over the questions on the engines of one run without iterations; what is there is not asked again.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, starmap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stasc_ray import config, stages, store
from stasc_ray.config import hashing
from stasc_ray.evaluation import measuring, metrics
from stasc_ray.evaluation.paired import Paired, paired
from stasc_ray.generation import unit_files
from stasc_ray.generation.collect import collect
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.recipes import recipe_of, section_of
from stasc_ray.recipes.policies import Policy, policies, policy
from stasc_ray.serving.published import model_path
from stasc_ray.stages import Run

TRIED = 16
"""Questions by which a strategy's tokens are found."""
DIRECT_ANSWERS = 4
"""The budget if none is given, in tokens of direct answers."""
MOST = {"samples": 64, "rounds": 16}
FILE = "compare.json"


@dataclass(frozen=True)
class Version:
    """Whose answers are compared."""

    name: str
    identity: str
    """Tells it apart from another model or another time that has its name."""
    model: str
    iteration: int
    settings: config.Config
    """Recipe, prompts and sampling of its run; the rest of the comparison's config."""


@dataclass(frozen=True)
class Cell:
    """What one version did with one strategy."""

    version: str
    strategy: str
    grows: str | None
    """What the budget bought."""
    n: int
    """How many of them."""
    questions: int
    failed: int
    reward: float
    low: float
    high: float
    """95% interval of the mean reward, by bootstrap over questions."""
    first_reward: float
    """Of the first answers: r(Y1)."""
    i_to_c: float
    c_to_i: float
    cl: float | None
    """Share of right answers kept right; the misjudge rate is one less it (arXiv 2412.19513, 2510.16062)."""
    cs: float | None
    """Share of wrong answers set right, the correction rate."""
    flips: tuple[tuple[float, float], ...]
    """Of each round (i->c, c->i), against the round before, as shares of the questions."""
    tokens: float
    """Generated tokens per question."""
    calls: float
    """Calls of the engine per question."""
    seconds: float | None
    """Of the pass, per question, all engines together; None if it was stopped between."""
    needs_reward: bool
    against_first: Paired | None = None
    """None for the first cell."""


def check_strategies(names: Sequence[str], settings: config.Config) -> list[str]:
    """The names, checked; all that there are if none is given, `direct` first.

    Raises:
        ValueError: an unknown name, the same twice, or one of several samples at temperature 0.
    """
    known = policies(recipe_of(settings.algorithm.recipe))
    every = sorted(known, key=lambda name: name != "direct")
    for number, name in enumerate(names):
        if name not in known:
            raise ValueError(f"--strategies: expected some of {', '.join(known)}, found {name!r}")
        if name in names[:number]:
            raise ValueError(f"--strategies: expected each once, found {name!r} twice")
    greedy = settings.evaluation.greedy or settings.sampling.initial.temperature == 0
    several = [
        name for name in names or every if known[name].grows == "samples" or known[name].least_samples > 1
    ]
    if greedy and several:
        if names:
            raise ValueError(
                f"--strategies {several[0]} asks for several samples: expected evaluation.greedy = false and "
                "sampling.initial.temperature above 0, found greedy answers, which are all the same"
            )
        return [name for name in every if name not in several]
    return list(names or every)


def versions_of(names: Sequence[str], settings: config.Config, base_model: str) -> list[Version]:
    """M0 of the comparison's config, or the versions that are named.

    Args:
        names: `RUN` (its LATEST) or `RUN:v0003`.

    Raises:
        FileNotFoundError, ValueError: no such run or version.
    """
    found = []
    for name in names:
        path, _, number = name.rpartition(":") if ":" in name else (name, "", "")
        folder = store.RunFolder(Path(path).resolve())
        of_run = store.read_config(folder.path, section_of)
        number = number or folder.latest() or ""
        manifests = {manifest["version"]: manifest for manifest in folder.versions()}
        if number not in manifests:
            raise ValueError(
                f"--versions {name}: expected one of {', '.join(manifests) or 'its versions'}, found "
                f"{number or 'none published'}"
            )
        manifest = manifests[number]
        taken = {part: getattr(of_run, part) for part in ("algorithm", "prompts", "sampling")}
        found.append(
            Version(
                f"{folder.path.name}:{number}",
                f"{folder.path} {manifest['created']}",
                model_path(folder.path, manifest),
                manifest["iteration"],
                settings.model_copy(update=taken),
            )
        )
    labels = [one.name for one in found]
    if len(set(labels)) < len(labels):
        raise ValueError(f"--versions: expected names that tell them apart, found {', '.join(labels)}")
    return found or [Version("base", base_model, base_model, 0, settings)]


def contest(
    run: Run, versions: Sequence[Version], strategies: Sequence[str], tokens: float | None
) -> dict[str, Any]:
    """Ask each version by each strategy, and write FILE into the run's folder.

    Args:
        tokens: generated per question that a strategy may spend; None: those of DIRECT_ANSWERS answers of
            the first version.

    Returns:
        What FILE holds: `questions`, `budget_tokens`, `cells`.

    Raises:
        RuntimeError: as `collect`.
    """
    stages.prepare_questions(run)
    tried = _some_questions(run)
    if tokens is None:
        tokens = DIRECT_ANSWERS * _costs(run, versions[0], "direct", 1, tried)[-1]
    cells: list[Cell] = []
    first: list[float] | None = None
    for version in versions:
        for name in strategies:
            n = _affordable(run, version, name, tried, tokens)
            cell, rewards = _measured(run, version, name, n)
            if first is None:
                first = rewards
            else:
                evaluation, threshold = run.settings.evaluation, version.settings.algorithm.threshold
                against = paired(first, rewards, threshold, evaluation.bootstrap_samples, run.settings.seed)
                cell = replace(cell, against_first=against)
            cells.append(cell)
            run.display.note(in_words(cell))
    found = {
        "name": run.settings.name,
        "questions": cells[0].questions,
        "budget_tokens": tokens,
        "cells": [asdict(cell) for cell in cells],
    }
    store.write_atomically(run.folder.path / FILE, json.dumps(found, indent=1) + "\n")
    return found


def in_words(cell: Cell) -> str:
    """A line for people."""
    many = f", {cell.n} {cell.grows}" if cell.grows else ""
    line = (
        f"{cell.version}, {cell.strategy}{many}: {cell.reward:.3f} [{cell.low:.3f}, {cell.high:.3f}], "
        f"{cell.tokens:.0f} tokens and {cell.calls:.1f} calls a question"
    )
    if (found := cell.against_first) is None:
        return line
    return f"{line}; {found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] against the first"


def _some_questions(run: Run) -> Path:
    """A file with the first test questions."""
    file = run.folder.path / "tried" / "test.parquet"
    rows = pq.read_table(run.folder.questions / "test.parquet").slice(0, TRIED).to_pylist()
    unit_files.write_questions(rows, file, run.settings.engine.batch_size)
    return file


def _affordable(run: Run, version: Version, name: str, tried: Path, tokens: float) -> int:
    """How many samples or rounds a strategy has for its tokens; 1 if it does not grow."""
    grows = _policy(version, name).grows
    return affordable(grows, _costs(run, version, name, 2, tried), tokens) if grows else 1


def affordable(grows: str, costs: Sequence[float], tokens: float) -> int:
    """The number whose cost is nearest to `tokens`, 1 at least.

    Args:
        grows: `samples` or `rounds`.
        costs: tokens per question with two of them, if 0, 1, ... corrections in a row count.
    """
    one, two = (costs[-1] / 2, costs[-1]) if grows == "samples" else costs[1:3]
    if two <= one:  # a second one costs nothing: there is none
        return 1
    return 1 + round(max(0.0, min((tokens - one) / (two - one), MOST[grows] - 1)))


def _costs(run: Run, version: Version, name: str, n: int, questions: Path) -> list[float]:
    """Generated tokens per question, if 0, 1, ... corrections in a row count, found with some questions."""
    _, traces = _pass(run, version, name, n, questions, "tried")
    settings = _settings(version, name, n)
    found = [row for file in traces for row in measuring.score_and_cost_file(file, settings)]
    return [statistics.mean(of) for of in zip(*(row["tokens_by_round"] for row in found), strict=True)]


def _policy(version: Version, name: str) -> Policy:
    return policy(name, recipe_of(version.settings.algorithm.recipe))


def _settings(version: Version, name: str, n: int) -> config.Config:
    """The version's settings with a strategy and its number."""
    settings, of = version.settings, _policy(version, name)
    samples = n if of.grows == "samples" else of.least_samples
    update = {
        "policy": name,
        "samples": samples,
        "rounds": n if of.grows == "rounds" else settings.evaluation.rounds,
        "greedy": settings.evaluation.greedy and samples == 1,
    }
    # M0's answers are nobody's here: each version corrects its own
    own = settings.algorithm.model_copy(update={"initial_answers_from": "current"})
    evaluation = settings.evaluation.model_copy(update=update)
    return settings.model_copy(update={"evaluation": evaluation, "algorithm": own})


def _pass(
    run: Run, version: Version, name: str, n: int, questions: Path, part: str
) -> tuple[float | None, list[str]]:
    """Ask these questions; the seconds that each took, all engines together (None: it was stopped between),
    and the trace files.
    """
    units = unit_files.question_units(questions, "test")
    settings = _settings(version, name, n)
    # another model, prompt or sampling gives other answers
    told = hashing.number(f"{version.identity} {config.to_json(settings)}")
    folder = run.folder.path / part / f"{version.name.replace(':', '-')}-{name}-{n}-{told:016x}"
    traces = [str(folder / f"{unit.name}.parquet") for unit in units]
    if mark := run.folder.committed(folder):
        return mark["seconds"], traces
    run.folder.check_lease()
    job = Job(version.model, version.iteration, settings, str(folder), run.on_cuda)
    what = f"{version.name}, {name} ({n})" + (": how many tokens" if part == "tried" else "")
    found = collect(run.display, job, units, what, run.engines)
    seconds = None if found["resumed_questions"] else found["generation_s"] / found["questions"]
    run.folder.commit(
        folder, {"line": {}, "files": [f"{unit.name}.parquet" for unit in units], "seconds": seconds}
    )
    return seconds, traces


def _measured(run: Run, version: Version, name: str, n: int) -> tuple[Cell, list[float]]:
    """A cell, and the rewards of its questions, ordered by their ids."""
    settings, of = _settings(version, name, n), _policy(version, name)
    seconds, traces = _pass(run, version, name, n, run.folder.questions / "test.parquet", "answers")
    scores = sorted(measuring.scores_and_costs(traces, settings), key=lambda score: score["id"])
    found = metrics.summarize(scores, settings.evaluation.bootstrap_samples, settings.seed)
    threshold = settings.algorithm.threshold
    right = [
        [reward >= threshold for reward in rewards]
        for rewards in zip(*(s["by_round"] for s in scores), strict=True)
    ]
    flips = starmap(_flips, pairwise(right))
    cell = Cell(
        version=version.name,
        strategy=name,
        grows=of.grows,
        n=n,
        questions=len(scores),
        failed=int(found["errors"] or 0),
        reward=_number(found, "r_y2"),
        low=_number(found, "r_y2_low"),
        high=_number(found, "r_y2_high"),
        first_reward=_number(found, "r_y1"),
        i_to_c=_number(found, "i_to_c"),
        c_to_i=_number(found, "c_to_i"),
        cl=found["cl"],
        cs=found["cs"],
        flips=() if of.ends == "first" else tuple(flips),
        tokens=statistics.mean(score["tokens"] for score in scores),
        calls=statistics.mean(score["calls"] for score in scores),
        seconds=seconds,
        needs_reward=of.needs_reward,
    )
    return cell, [score["r_y2"] for score in scores]


def _number(found: Mapping[str, Any], name: str) -> float:
    return float(found[name] or 0.0)


def _flips(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    """(i->c, c->i) between two rounds, as shares of the questions."""
    pairs = list(zip(before, after, strict=True))
    return pairs.count((False, True)) / len(pairs), pairs.count((True, False)) / len(pairs)
