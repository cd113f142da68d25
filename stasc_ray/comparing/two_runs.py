"""What two runs differ in: their configs, and the answers of the versions that they chose to the test
questions that both were asked: `stasc compare RUN_A RUN_B`. Reads what the runs committed; needs no engine.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stasc_ray import config, store
from stasc_ray.evaluation import measuring
from stasc_ray.evaluation.paired import p_value, paired
from stasc_ray.generation import unit_files
from stasc_ray.recipes import recipe_of, section_of
from stasc_ray.recipes.policies import policy, seen, votes_of
from stasc_ray.recipes.trace import finals, read_texts, roots
from stasc_ray.store import files
from stasc_ray.store.rows import text_columns

SHOWN = 50
"""Questions of each kind whose texts are shown."""
SHOWN_COLUMNS = (*measuring.COLUMNS, *text_columns(*measuring.WEIGHED), "question", "answers")


def compared(first: Path, second: Path) -> dict[str, Any]:
    """Two runs on their shared test questions.

    Returns:
        first, second (their names), config ([field, value, value]), rewards, paired (`evaluation.paired`),
        gained and lost (id, question, answers, texts; `SHOWN` at most), notes.

    Raises:
        FileNotFoundError: no run folder, or it has measured nothing yet.
        ValueError: they share no test question.
    """
    (one, rows_a), (other, rows_b) = (_of(folder) for folder in (first, second))
    shared = sorted(rows_a.keys() & rows_b.keys())
    if not shared:
        raise ValueError(
            f"stasc compare: expected test questions that {first} and {second} share, found none of "
            f"{len(rows_a)} and {len(rows_b)}; compare runs on the same questions"
        )
    settings = one["settings"]
    rewards = [[rows[name]["reward"] for name in shared] for rows in (rows_a, rows_b)]
    threshold = settings.algorithm.threshold
    samples = settings.evaluation.bootstrap_samples
    found = paired(rewards[0], rewards[1], threshold, samples, settings.seed)
    right = [[reward >= threshold for reward in of] for of in rewards]
    flips = [
        [name for name, *was in zip(shared, *right, strict=True) if was == wanted]
        for wanted in ([False, True], [True, False])
    ]
    notes = [f"{of['name']}: {of['version']}, {of['what']}" for of in (one, other)]
    if len(shared) < max(len(rows_a), len(rows_b)):
        notes.append(f"{len(shared)} questions are in both; {len(rows_a)} and {len(rows_b)} were asked.")
    if settings.reward != other["settings"].reward:
        notes.append("Their rewards differ, so the figures are on two scales.")
    gained, lost = ([_shown(rows_a[name], rows_b[name]) for name in of[:SHOWN]] for of in flips)
    return {
        "first": one["name"],
        "second": other["name"],
        "config": _differences(settings, other["settings"]),
        "rewards": [sum(of) / len(of) for of in rewards],
        "paired": asdict(found),
        "gained": gained,
        "lost": lost,
        "notes": notes,
    }


def as_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """For people, in a terminal."""
    yield from found["notes"]
    for name, before, after in found["config"]:
        yield f"{name}: {before} -> {after}"
    paired = found["paired"]
    yield (
        f"{paired['questions']} test questions: {found['rewards'][0]:.3f} and {found['rewards'][1]:.3f}, "
        f"difference {paired['difference']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]; only "
        f"{found['second']} has {paired['gained']} right, only {found['first']} {paired['lost']} "
        f"(McNemar p {p_value(paired['p'])})"
    )


def _of(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A run's chosen version, and its answers to the test questions by id."""
    folder = store.RunFolder(path.resolve())
    settings = store.read_config(folder.path, section_of)
    version = folder.latest() or "v0000"
    manifests = {manifest["version"]: manifest for manifest in folder.versions()}
    iteration = manifests[version]["iteration"] if version in manifests else 0
    traces = unit_files.of_split(folder.files(folder.stage(iteration, "rollouts")), "test")
    fixed = settings.algorithm.initial_answers_from == "base" and iteration > 0
    writer = store.iteration_name(0 if fixed else iteration)
    rows = {row["id"]: row for file in traces for row in _rows(file, settings, writer)}
    what = "correcting M0's answers" if fixed else "correcting its own answers"
    about = {"name": folder.path.name, "version": version, "settings": settings, "what": what}
    return about, rows


def _rows(file: str, settings: config.Config, writer: str) -> Iterator[dict[str, Any]]:
    recipe, name = recipe_of(settings.algorithm.recipe), settings.evaluation.policy
    way = policy(name, recipe)
    scores = measuring.score_file(file, settings, writer)
    for row, score in zip(files.read(file, SHOWN_COLUMNS).to_pylist(), scores, strict=True):
        texts = seen(way, recipe, read_texts(row), settings.algorithm.threshold)
        ends = [end for root in roots(texts, writer) for end in finals(texts, root, recipe.answers)]
        chosen = ends[:1]
        if way.weigh and ends:
            chosen = [votes_of(name, recipe, ends, texts, row["choices"] or (), settings)[0][0]]
        said = [f"{text.turn}: {text.answer}" for end in chosen for text in end.lineage]
        several = [f"(one of {len(ends)} samples)"] if len(ends) > 1 else []
        yield {**row, "reward": score["r_y2"], "text": "\n\n".join(said + several) or "(no answer)"}


def _shown(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    about = {name: one[name] for name in ("id", "question", "answers")}
    return {**about, "texts": [one["text"], other["text"]]}


def _differences(one: config.Config, other: config.Config) -> list[tuple[str, str, str]]:
    before, after = (
        {name: config.as_text(value) for name, value, *_ in config.walk(of)} for of in (one, other)
    )
    names = config.differing_fields(one, other)
    return [(name, before.get(name, "\N{EN DASH}"), after.get(name, "\N{EN DASH}")) for name in names]
