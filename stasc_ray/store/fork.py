"""A fork: a new run folder that goes on from an iteration of a run, under another config.

Reads the run's committed stages, which never change, so the run may be running. Writes one new folder, beside
its place first and renamed when it is whole. Large files are hard links if the file system has them, else
copies: either folder can be deleted.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.config import Mark
from stasc_ray.store.files import write_atomically
from stasc_ray.store.run_folder import COMMIT_MARK, RunFolder, now, write_config

ORIGIN = "fork.json"


@dataclass(frozen=True)
class Forked:
    """What became of a fork."""

    asks_again: bool
    """The model that it starts from is asked again, since the config changes what is asked."""
    linked: int
    """Files that are shared."""
    copied: int
    """Files that had to be copied."""


def fork(
    source: Path, iteration: int, target: Path, settings: config.Config, stored: config.Config
) -> Forked:
    """Make `target`, a run folder that holds M_iteration of `source` and all that led to it.

    Args:
        settings: of the fork.
        stored: of the run.

    Raises:
        ValueError: `target` is there; the iteration has no committed model; the config would make what is
            shared a lie.
        OSError: the folder can't be written.
    """
    if target.exists():
        raise ValueError(f"stasc fork: expected a new folder, found {target}; choose another NAME")
    run = RunFolder(source)
    _check_committed(run, iteration)
    differing = config.differing_fields(stored, settings, operational=False)
    if refused := _refused(differing, stored, settings, iteration):
        raise ValueError(
            f"stasc fork: {source} shares what rests on these fields with a fork, so they stay:\n"
            + "\n".join(f"  {line}" for line in refused)
            + "\nleave them out, or start a run of its own with `stasc run`"
        )
    marks = config.marks(settings)
    asks_again = any(marks[name] is Mark.FORK_ASKS for name in differing)
    built = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        counts = _share(run, built, iteration, measured=not asks_again)
        write_config(built, settings)
        _write_origin(built, source, iteration, stored, settings)
        built.rename(target)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    return Forked(asks_again, *counts)


def origin(path: Path) -> dict[str, Any] | None:
    """Where a run was forked from (run, iteration, changed); None: it was not."""
    file = path / ORIGIN
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _check_committed(run: RunFolder, iteration: int) -> None:
    needed = [run.questions, *(run.stage(n, "model") for n in range(1, iteration + 1))]
    needed += [run.stage(n, stage) for n in range(iteration) for stage in ("rollouts", "evaluation")]
    missing = [folder for folder in needed if run.committed(folder) is None]
    if missing:
        newest = run.newest_model if run.committed(run.questions) else None
        has = "none yet" if newest is None else f"0 to {newest}"
        raise ValueError(
            f"stasc fork: expected --from to name an iteration whose model is committed, found {iteration}; "
            f"{run.path} has {has} (no finished {missing[0].relative_to(run.path)})"
        )


def _refused(
    differing: Sequence[str], stored: config.Config, settings: config.Config, iteration: int
) -> list[str]:
    """Each field that may not differ, with the reason."""
    marks = {**config.marks(stored), **config.marks(settings)}
    fixed = stored.algorithm.initial_answers_from == "base" and iteration > 0
    length = settings.algorithm.iterations
    continues = settings.algorithm.finetune_from == "current" and settings.finetune.method == "lora"
    found = []
    for name in differing:
        if marks[name] is Mark.RUN:
            found.append(f"{name}: {_rests_on(name)}")
        elif fixed and _asks_first(name):
            found.append(f"{name}: with Fixed initialization M0's answers are corrected, which are shared")
        elif iteration and continues and stored.finetune.method == "lora" and _shapes_adapter(name):
            found.append(f"{name}: M_{iteration}'s adapter is continued, and has its own")
    if length < max(iteration, 1):
        found.append(f"algorithm.iterations: expected at least {max(iteration, 1)}, found {length}")
    return found


def _rests_on(name: str) -> str:
    """Why a field that belongs to the whole run can't differ in a fork."""
    section = name.partition(".")[0]
    if section in ("questions", "seed") or name == "engine.batch_size":
        return "the questions, their splits and their units of work are shared"
    if section == "model":
        return "M0 is shared"
    if section in ("reward", "evaluation") or name in ("algorithm.threshold", "prompts.answer_marker"):
        return "the figures and rewards that are shared were measured with it"
    return "what is shared was asked, learnt or measured with it"


def _asks_first(name: str) -> bool:
    """Whether a field says how first answers are asked."""
    corrects = name.startswith(("prompts.correction", "sampling.correction."))
    return name == "algorithm.n_initial" or (name.startswith(("prompts.", "sampling.")) and not corrects)


def _shapes_adapter(name: str) -> bool:
    return name.startswith("finetune.lora.") and name != "finetune.lora.dropout"


def _share(run: RunFolder, built: Path, iteration: int, *, measured: bool) -> tuple[int, int]:
    """Share stages, versions, LATEST and their lines; returns how many files were linked and copied.

    Args:
        measured: whether M_iteration's own pass and what follows from it are shared.
    """
    built.mkdir(parents=True)
    published = {line["iteration"]: line for line in run.metrics() if line["stage"] == "publish"}
    lines, linked = [], []
    for folder in _stages(run, iteration, measured):
        mark = run.committed(folder)
        if mark is None:
            continue
        place = built / folder.relative_to(run.path)
        linked += [_link(file, place / file.relative_to(folder)) for file in _files(folder, mark)]
        # Written, not linked: the run may have grown since its mark was read.
        write_atomically(place / COMMIT_MARK, json.dumps(mark, indent=2, ensure_ascii=False))
        lines.append(mark["line"])
        number = mark["line"]["iteration"]
        if mark["line"]["stage"] == "evaluation" and number in published:
            lines.append(published[number])
            _share_version(run.path, built, published[number])
    converted = run.stage(0, "model")  # of a GGUF file; it appears whole, without a mark
    for file in sorted(converted.rglob("*")):
        linked += [_link(file, built / file.relative_to(run.path))] if file.is_file() else []
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (built / "metrics.jsonl").write_text(text, encoding="utf-8")
    for name in {line["config_fingerprint"] for line in lines if "config_fingerprint" in line}:
        _copy(run.path, built, Path("configs") / f"{name}.json")
    return sum(linked), len(linked) - sum(linked)


def _stages(run: RunFolder, iteration: int, measured: bool) -> Iterator[Path]:
    """The folders of the stages that are shared, in the order in which a run finishes them."""
    yield run.questions
    for number in range(iteration + 1):
        if number:
            yield run.stage(number, "examples")
            yield run.stage(number, "model")
        if number < iteration or measured:
            yield run.stage(number, "rollouts")
            yield run.stage(number, "evaluation")


def _files(folder: Path, mark: dict[str, Any]) -> list[Path]:
    """What a committed stage consists of, its mark left out: what that lists; of a model all there is."""
    if mark["line"]["stage"] != "finetune":
        return [folder / name for name in mark["files"]]
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != COMMIT_MARK]


def _share_version(source: Path, built: Path, line: dict[str, Any]) -> None:
    _copy(source, built, Path("versions") / f"{line['publish/version']}.json")
    if line["publish/latest"]:
        write_atomically(built / "LATEST", f"{line['publish/version']}\n")


def _link(source: Path, target: Path) -> bool:
    """Share a file, or copy it if it can't be (another file system, no hard links, too many of them)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        return False
    return True


def _copy(source: Path, target: Path, name: Path) -> None:
    """Copy a small file, if it is there."""
    if (source / name).is_file():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)


def _write_origin(
    built: Path, source: Path, iteration: int, stored: config.Config, settings: config.Config
) -> None:
    old, new = (dict((name, value) for name, value, *_ in config.walk(tree)) for tree in (stored, settings))
    changed = {
        name: [config.as_text(old.get(name)), config.as_text(new.get(name))]
        for name in config.differing_fields(stored, settings)
        if name not in ("name", "storage")
    }
    found = {"run": str(source.resolve()), "iteration": iteration, "changed": changed, "created": now()}
    write_atomically(built / ORIGIN, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
