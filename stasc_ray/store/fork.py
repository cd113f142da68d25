"""`stasc fork`: a new run that goes on from another's model under another config.

The new folder shares what led to that model, and holds it itself: hard links, which outlive the first run's
folder, or copies where the file system has none. fork.json says where it came from.
"""

import itertools
import json
import os
import shlex
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.store.files import write_atomically
from stasc_ray.store.run_folder import (
    COMMIT_MARK,
    FORK_FILE,
    RunFolder,
    now,
    read_config,
    read_values,
    write_config,
)

SHARED_RESTS_ON = {
    ("questions.", "engine.batch_size"): "the questions are shared as they were loaded, split and cut",
    ("seed",): "it chose and split the shared questions",
    ("model.",): "the shared models come from this one",
    ("reward.", "prompts.answer_marker", "prompts.marker_unasked"): "the shared texts are graded by it",
    ("algorithm.threshold",): "the shared figures count with it",
    ("algorithm.recipe",): "the shared texts are the turns of the other one",
    ("prompts.preset",): "the run's config holds its texts: give those that change (prompts.correction=...)",
}
"""Fields that no fork may have otherwise, and why: each would make its config.json a lie about what it
shares."""
FIRST_ANSWERS = (
    "sampling.initial.",
    "prompts.system",
    "prompts.initial",
    "prompts.initial_demonstrations",
    "prompts.documents",
    "prompts.choices",
    "algorithm.n_initial",
    "evaluation.samples",
    "evaluation.greedy",
)
"""By what first answers are asked. With Fixed initialization they are M0's, and shared."""
NEVER_ASKED = (
    "finetune.",
    "algorithm.iterations",
    "algorithm.finetune_from",
    "algorithm.filter",
    "algorithm.pairing",
    "algorithm.keep_correct_share",
    "algorithm.keep_truncated",
    "algorithm.learn_answers",
    "algorithm.balance",
    "algorithm.max_examples_per_question",
)
"""Fields that change no text: they select or train. Any other that is not operational, a new one or one of a
recipe too, counts as one that does, so that no text is shared that another config would not give."""


def make(
    origin: Path, name: str, iteration: int, overrides: Sequence[str], sections: config.Sections, folder: Path
) -> list[str]:
    """Make the run folder `folder` from the run at `origin`, which may be running; returns what to tell.

    Args:
        name: of the new run.
        iteration: whose model is kept; 0 is M0.
        overrides: `section.field=value`, from that model on.
        sections: as for `config.load_config`.

    Raises:
        FileNotFoundError: no run at `origin`.
        ValueError: no such model there; an override that what is shared rests on; `folder` exists. Then
            nothing was made.
    """
    run, stored = RunFolder(origin), read_config(origin, sections)
    _check_new(folder)
    _check_from(run, stored, iteration)
    settings = _changed(stored, name, overrides, sections, folder)
    eras = [config_of(origin, sections, i) for i in range(iteration + 1)]
    if refused := _refused(eras, stored, settings):
        lines = "\n".join(f"  {line}" for line in refused)
        raise ValueError(
            f"stasc fork: expected overrides that leave what is shared true, found\n{lines}\n"
            "leave them out, or start a run of its own with them (stasc run CONFIG.toml)"
        )
    same = [not asked_otherwise(era, settings) for era in eras]
    first = iteration
    while same[iteration] and first and same[first - 1]:
        first -= 1
    about = {"origin": str(origin.resolve()), "iteration": iteration, "overrides": list(overrides)}
    about |= {"asked_again": not same[iteration], "compares_from": first, "created": now()}
    built = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    try:
        shared = _fill(built, run, settings, about)
        _check_new(folder)  # again: it took a while
        built.rename(folder)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    return [*in_words(about), f"shares {', '.join(shared)}", f"go on: stasc run {shlex.quote(str(folder))}"]


def config_of(path: Path, sections: config.Sections, iteration: int) -> config.Config:
    """The config under which the model of an iteration was asked, and its successor trained: a fork's origin
    may have had another one.

    Raises:
        FileNotFoundError, ValueError: as `read_config`.
    """
    for era in RunFolder(path).fork().get("earlier", []):
        if iteration < era["before"]:
            return config.validate(era["config"], sections, origin=str(path / FORK_FILE))
    return read_config(path, sections)


def asked_otherwise(old: config.Config, new: config.Config) -> list[str]:
    """The fields that differ and decide what a model is asked, and so what it writes."""
    return [name for name in _differing(old, new) if not _is_one_of(name, NEVER_ASKED)]


def in_words(about: dict[str, Any]) -> list[str]:
    """Where a fork comes from, by what fork.json holds; empty for a run that is none."""
    if not about:
        return []
    changes = " ".join(about["overrides"]) or "its own config"
    model = "M0" if about["iteration"] == 0 else f"the model of iteration {about['iteration']}"
    lines = [f"forked from {model} of {about['origin']}, with {changes}"]
    if about["compares_from"]:
        lines.append(
            f"models before iteration {about['compares_from']} were asked under another config: their "
            "figures do not compare, and none of them is chosen"
        )
    return lines


def ways_on(run: Path, name: str, iteration: int, overrides: Sequence[str]) -> str:
    """The commands that go on from the model of an iteration under another config, to copy into a shell."""
    number = next(n for n in itertools.count(2) if not (run.parent / f"{name}-{n}").exists())
    words = ["stasc", "fork", str(run), f"{name}-{number}", "--from", str(iteration), *overrides]
    folder = shlex.quote(str(run.parent / f"{name}-{number}"))
    return f"{shlex.join(words)} && stasc run {folder}"


def _differing(old: config.Config, new: config.Config) -> list[str]:
    """The fields that differ and say what a run is."""
    operational = config.operational_fields(new)
    return [name for name in config.differing_fields(old, new) if name not in operational]


def _is_one_of(name: str, fields: Sequence[str]) -> bool:
    """Whether a field is among `fields`; one that ends in a dot stands for a whole section."""
    return any(name == field or (field.endswith(".") and name.startswith(field)) for field in fields)


def _check_new(folder: Path) -> None:
    if folder.exists():
        raise ValueError(
            f"stasc fork: expected a new folder, found {folder}; choose another NAME or --run-dir"
        )


def _check_from(run: RunFolder, stored: config.Config, iteration: int) -> None:
    if not run.committed(run.questions):
        raise ValueError(f"stasc fork: expected a run that has begun, found no questions yet in {run.path}")
    if stored.algorithm.iterations == 0:
        raise ValueError(
            f"stasc fork: expected a run that learns, found one that only measures in {run.path}; start a "
            "run of its own: stasc run CONFIG.toml"
        )
    if iteration and not run.committed(run.stage(iteration, "model")):
        there = [0]
        while run.committed(run.stage(there[-1] + 1, "model")):
            there.append(there[-1] + 1)
        raise ValueError(
            f"--from: expected an iteration whose model is finished in {run.path} "
            f"({', '.join(map(str, there))}; 0 is the base model), found {iteration}"
        )


def _changed(
    stored: config.Config, name: str, overrides: Sequence[str], sections: config.Sections, folder: Path
) -> config.Config:
    """The new run's config."""
    if "=" in name:
        raise ValueError(f"stasc fork: expected the new run's NAME before the overrides, found {name!r}")
    recipe = stored.algorithm.recipe
    for override in overrides:
        field, _, value = (part.strip() for part in override.partition("="))
        if field in ("name", "storage"):
            raise ValueError(f"stasc fork: expected NAME and --run-dir to say where, found {override!r}")
        # said here, since another recipe's section would first refuse the words of this one
        if field == "algorithm.recipe" and value.strip("'\"") != recipe:
            why = SHARED_RESTS_ON[("algorithm.recipe",)]
            raise ValueError(f"stasc fork: algorithm.recipe is {recipe!r}, found {override!r}: {why}")
    where = [f"storage={config.as_text(str(folder.parent))}"] if folder.name == name else []
    return config.with_overrides(stored, [*overrides, f"name={config.as_text(name)}", *where], sections)


def _refused(eras: Sequence[config.Config], stored: config.Config, settings: config.Config) -> list[str]:
    """The fields that can't change after `eras` (the config of each iteration), each with its reason."""
    iteration, section = len(eras) - 1, settings.algorithm
    found = [
        f"{name}: {why}"
        for name in _differing(stored, settings)
        for fields, why in SHARED_RESTS_ON.items()
        if _is_one_of(name, fields)
    ]
    if section.iterations < max(1, iteration):
        found.append(f"algorithm.iterations: {section.iterations}, but {max(1, iteration)} is the least here")
    if iteration and section.initial_answers_from == "base":
        why = "with Fixed initialization the first answers are M0's, and shared; --from 0 asks them again"
        found += [
            f"{name}: {why}"
            for name in config.differing_fields(eras[0], settings)
            if _is_one_of(name, FIRST_ANSWERS)
        ]
    return found + _adapter_refused(eras, settings)


def _adapter_refused(eras: Sequence[config.Config], settings: config.Config) -> list[str]:
    """A LoRA adapter that is continued keeps its shape, and stays one."""
    if len(eras) == 1 or settings.algorithm.finetune_from != "current":
        return []
    trained = eras[-2]
    if "lora" not in (trained.finetune.method, settings.finetune.method):
        return []
    why = "the model's adapter is continued, which has its own; algorithm.finetune_from=base starts anew"
    return [
        f"{name}: {why}"
        for name in config.differing_fields(trained, settings)
        if _is_one_of(name, ("finetune.method", "finetune.lora."))
    ]


def _fill(built: Path, run: RunFolder, settings: config.Config, about: dict[str, Any]) -> list[str]:
    """Make the whole folder; returns the shared stages."""
    iteration = about["iteration"]
    shared, lines = _shared(run, iteration, about["asked_again"]), set()
    for folder in shared:
        mark = run.committed(folder)
        # The last pass of a run asks no train questions; the fork goes on, so it asks them, and only them.
        unfinished = mark and folder == run.stage(iteration, "rollouts") and not _learns(mark)
        closed = not (unfinished and settings.algorithm.iterations > iteration)
        _share_tree(folder, built / folder.relative_to(run.path), closed=closed)
        if mark and closed:
            lines.add((mark["line"]["stage"], mark["line"]["iteration"]))
    lines |= {("publish", number) for stage, number in lines if stage == "evaluation"}
    _share_tree(run.path / "configs", built / "configs", closed=True)  # which lines name
    _share_lines(built, run, [one for one in run.metrics() if (one["stage"], one["iteration"]) in lines])
    write_atomically(built / FORK_FILE, json.dumps(about | {"earlier": _eras(run, iteration)}, indent=2))
    write_config(built, settings)
    return [str(folder.relative_to(run.path)) for folder in shared]


def _share_lines(built: Path, run: RunFolder, lines: Sequence[dict[str, Any]]) -> None:
    """Write metrics.jsonl, the versions that its lines publish, and LATEST as it was after them."""
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    write_atomically(built / "metrics.jsonl", text)
    published = [line for line in lines if line["stage"] == "publish"]
    for version in (line["publish/version"] for line in published):
        _share(run.path / "versions" / f"{version}.json", built / "versions" / f"{version}.json")
    if moved := [line["publish/version"] for line in published if line["publish/latest"]]:
        write_atomically(built / "LATEST", f"{moved[-1]}\n")


def _learns(mark: dict[str, Any]) -> bool:
    """Whether a pass asked train questions."""
    return any(name.startswith("train-") for name in mark["files"])


def _shared(run: RunFolder, iteration: int, asked_again: bool) -> list[Path]:
    """The finished stages that led to an iteration's model, and its own pass unless it is asked again."""
    found = [run.questions]
    for number in range(iteration + 1):
        texts = [] if asked_again and number == iteration else ["rollouts", "evaluation"]
        stages = [run.stage(number, stage) for stage in ("examples", "model", *texts)]
        # a GGUF file that was converted has no mark: its folder is renamed into place
        found += [stage for stage in stages if run.committed(stage) or stage == run.stage(0, "model")]
    return [stage for stage in found if stage.is_dir()]


def _share_tree(source: Path, target: Path, *, closed: bool) -> None:
    """Share a stage's files; unless `closed`, without its mark, so that its run goes on with it."""
    for file in sorted(source.rglob("*")):
        # what begins with a dot is no result: units begun, files half written
        if file.is_file() and not file.name.startswith(".") and (closed or file.name != COMMIT_MARK):
            _share(file, target / file.relative_to(source))


def _share(file: Path, target: Path) -> None:
    """Hard link, else copy. A run never writes into a file of a finished stage: it replaces files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = file.resolve()  # a link of the first run's would break with its folder
    try:
        os.link(source, target)
    except OSError:  # another file system, one without hard links, or files of somebody else
        shutil.copy2(source, target)


def _eras(run: RunFolder, iteration: int) -> list[dict[str, Any]]:
    """The configs that what is shared was made under: each `config` for iterations below `before`."""
    earlier = run.fork().get("earlier", [])
    eras = [{**era, "before": min(era["before"], iteration)} for era in earlier]
    return [*eras, {"before": iteration, "config": read_values(run.path)}]
