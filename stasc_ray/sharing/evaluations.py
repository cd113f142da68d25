"""A finished evaluation of a run: which version it measured, under which config, and where its traces lie."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc_ray import config, store
from stasc_ray.generation import unit_files
from stasc_ray.recipes import section_of
from stasc_ray.sharing import public_names
from stasc_ray.store import files, fork

ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Evaluation:
    """One split, answered by the model of one iteration and measured."""

    folder: store.RunFolder
    settings: config.Config
    """Under which the model was asked."""
    iteration: int
    split: str
    own_answers: bool
    """Of a run with Fixed initialization: the model's own first answers, not M0's."""
    files: Sequence[str]
    """Its trace files."""
    line: dict[str, Any]
    """Of metrics.jsonl."""

    @property
    def corrects_base(self) -> bool:
        """Whether the first answers are M0's."""
        return self.settings.algorithm.initial_answers_from == "base" and self.iteration > 0

    @property
    def of_base(self) -> bool:
        """Whether M0 wrote the first answers that count."""
        return self.corrects_base and not self.own_answers

    @property
    def writer(self) -> str:
        """Who wrote the first answers that count."""
        return store.iteration_name(0 if self.of_base else self.iteration)

    @property
    def version(self) -> str:
        """The version's name, whether published or not."""
        return f"v{self.iteration:04d}"

    @property
    def source(self) -> str:
        """Where the questions came from, as it is called elsewhere."""
        questions = self.settings.questions
        return public_names.of_source(getattr(questions, self.split).source or questions.train.source)

    @property
    def figures(self) -> dict[str, Any]:
        """What the run measured, by name: `r_y2`, `r_y2_low`, ..."""
        at = f"evaluation/{self.split}/{'base/' if self.of_base else ''}"
        found = {name.removeprefix(at): value for name, value in self.line.items() if name.startswith(at)}
        # a gain is in what the version is chosen by, which its own answers may not be
        return {
            name: value for name, value in found.items() if not name.startswith("gain") and "/" not in name
        }

    @property
    def model(self) -> str:
        """What the measured model is called."""
        return self.model_of(store.iteration_name(self.iteration))

    def model_of(self, writer: str) -> str:
        """What the model that wrote a text is called: `demo/v0001`, or M0's own name."""
        number = 0 if writer == store.iteration_name(0) else int(writer.removeprefix("iteration_"))
        name = public_names.of_model(self.settings.model.path)
        return f"{self.settings.name}/v{number:04d}" if number else name


def find(
    run: Path,
    iteration: int | None = None,
    version: str | None = None,
    split: str = "test",
    *,
    own_answers: bool = False,
) -> Evaluation:
    """The evaluation of an iteration's model (0 is M0), or of a published version; default: of LATEST.

    Raises:
        FileNotFoundError: no run folder, or that model was not measured yet.
        ValueError: both an iteration and a version; no such version; no questions of that split; own answers
            where no others were measured.
    """
    folder = store.RunFolder(run.resolve())
    store.read_config(folder.path, section_of)  # refuses what is no run
    number = _number(folder, iteration, version)
    stage = folder.stage(number, "evaluation")
    finished = mark(folder, stage)
    if finished is None:
        names = (found.parent.parent.name for found in folder.path.glob(f"*/evaluation/{store.COMMIT_MARK}"))
        done = sorted(
            int(name.removeprefix("iteration_").replace("base", "0"))
            for name in names
            if re.fullmatch(r"base|iteration_\d+", name)
        )
        raise FileNotFoundError(
            f"expected a finished evaluation of {store.iteration_name(number)} in {folder.path}, found those "
            f"of {', '.join(map(store.iteration_name, done)) or 'none'}; `stasc run` and `stasc evaluate "
            "--output` make them"
        )
    traces = unit_files.of_split(folder.files(folder.stage(number, "rollouts")), split)
    if not traces:
        raise ValueError(
            f"--split: expected one that was measured, found no {split} questions in {folder.path}; a run "
            "without iterations has test alone"
        )
    settings = fork.config_of(folder.path, section_of, number)
    found = Evaluation(folder, settings, number, split, own_answers, traces, finished["line"])
    if own_answers and not found.corrects_base:
        raise ValueError(
            "--own-answers: expected a model that corrects the base model's answers (Fixed initialization), "
            f"found {store.iteration_name(number)}, whose own answers were measured alone; leave it out"
        )
    return found


def manifest(folder: store.RunFolder, version: str | None) -> dict[str, Any]:
    """The manifest of a published version; None: of LATEST.

    Raises:
        ValueError: nothing is published, or no such version.
    """
    there = {found["version"]: found for found in folder.versions()}
    name = folder.latest() if version is None else version
    if name not in there:
        found = (name or repr(name)) if there else "none"
        raise ValueError(
            f"--version: expected a published version of {folder.path} ({', '.join(there) or 'none yet'}), "
            f"found {found}; `stasc run` publishes one after each iteration"
        )
    iteration = there[name].get("iteration")
    if type(iteration) is not int:
        raise ValueError(
            f"{folder.path}/versions/{name}.json: expected a manifest with its iteration's number, found "
            f"{iteration!r}; restore it, or choose another by --version"
        )
    return there[name]


def mark(folder: store.RunFolder, stage: Path) -> dict[str, Any] | None:
    """The commit mark of a finished stage, which says when that was and under which config; None: no mark.

    Raises:
        ValueError: one that doesn't say it.
    """
    found = folder.committed(stage)
    line = found["line"] if found else {}
    said = isinstance(line, dict) and {name: line.get(name) for name in ("time", "config")}
    if found and not (said and isinstance(said["time"], int | float) and isinstance(said["config"], str)):
        raise ValueError(
            f"{stage / store.COMMIT_MARK}: expected a line with its time and config, found {said or line!r}; "
            "restore it, or delete it, and the same run makes the stage again"
        )
    return found


def environment(folder: store.RunFolder) -> dict[str, Any]:
    """What environment.json holds; empty if there is none.

    Raises:
        ValueError: no versions of libraries in it.
    """
    file = folder.path / ENVIRONMENT
    found = files.read_json(file) if file.is_file() else {}
    versions = found.get("versions", {})
    if not isinstance(versions, dict) or not all(isinstance(one, str) for one in versions.values()):
        raise ValueError(
            f"{file}: expected versions of libraries as texts by name, found {versions!r}; restore it, or "
            "delete it to go without them"
        )
    return found


def _number(folder: store.RunFolder, iteration: int | None, version: str | None) -> int:
    if iteration is not None and version is not None:
        raise ValueError(f"expected --iteration or --version, found both ({iteration} and {version})")
    return iteration if iteration is not None else manifest(folder, version)["iteration"]
