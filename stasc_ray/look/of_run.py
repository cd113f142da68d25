"""What `stasc look` shows of a run: any question's texts with their rewards, why they are learnt or not, the
loss mask.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stasc_ray import config, store
from stasc_ray.generation import unit_files
from stasc_ray.learning.examples import Selecting
from stasc_ray.look.tokens import facts, load_chat, mask
from stasc_ray.recipes import recipe_of, section_of
from stasc_ray.recipes.recipe import Example, train_plan
from stasc_ray.recipes.selection import TRANSITIONS, Chosen, choose, transition
from stasc_ray.recipes.trace import Text, finals, read_texts, roots
from stasc_ray.report.figures import Table
from stasc_ray.report.look_page import Block, Note, Page, Part, Said
from stasc_ray.store import files, fork, iteration_name
from stasc_ray.tasks import rewards
from stasc_ray.tasks.chat import Chat
from stasc_ray.tasks.questions import SPLITS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """Which questions of a run to show: those to which all of this applies."""

    id: str | None = None
    transition: str | None = None
    kept: bool = False
    disputed: bool = False
    iteration: int | None = None
    """Whose texts; 0 is the base model. None: the last one whose texts were learnt from, else the last."""
    limit: int = 5

    def __post_init__(self) -> None:
        """Take a transition as metrics name it, too.

        Raises:
            ValueError: no such transition.
        """
        if self.transition is not None:
            name = self.transition.replace("_to_", "->")
            if name not in TRANSITIONS:
                raise ValueError(
                    f"--transition: expected one of {', '.join(TRANSITIONS)}, found {self.transition!r}; a "
                    "shell takes `>` for itself, so quote it ('i->c') or write i_to_c"
                )
            object.__setattr__(self, "transition", name)


def look_at_run(path: Path, wanted: Wanted) -> Page:
    """Questions of a run, with what became of their texts.

    Raises:
        FileNotFoundError: no run folder, or nothing was generated yet.
        ValueError: a run folder of another format; no such question.
    """
    run = _Run(path, wanted)
    read, parts = 0, []
    for row, learnt_ids in run.rows():
        read += 1
        traced = _Traced(run, row, learnt_ids)
        if traced.is_wanted():
            parts.append(Part(f"{row['id']} ({row['split']})", traced.blocks()))
        if len(parts) == wanted.limit or (parts and wanted.id):
            break
    run.close()
    if wanted.id and not parts:
        raise ValueError(
            f"--id: expected a question of {run.folder.path} to which the other options apply, found none "
            f"called {wanted.id!r}; without --id `stasc look RUN` shows some with their ids"
        )
    title = f"{path.resolve().name}, texts of {iteration_name(run.iteration)}"
    return Page("a run, looked at", title, [Part("What is shown", run.head(read, len(parts))), *parts])


class _Run:
    """A run folder, and all that its questions are looked at with."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.folder, self.wanted = store.RunFolder(path), wanted
        store.read_config(path, section_of)  # refuses what is no run
        self.iteration = self._iteration()
        self.settings = fork.config_of(path, section_of, self.iteration)
        self.recipe, self.section = recipe_of(self.settings.algorithm.recipe), self.settings.algorithm
        self.files = self.folder.files(self.folder.stage(self.iteration, "rollouts"))
        self._graders: dict[config.Reward, rewards.Grader] = {}

    @cached_property
    def chat(self) -> Chat | str:
        """How examples are rendered, or why they can't be."""
        try:
            return load_chat(self.settings, self.folder.path)
        except (OSError, ValueError) as error:
            return str(error)

    def rows(self) -> Iterator[tuple[Row, set[str] | None]]:
        """Rows, train first, with the ids of the examples that their file gave; None: not chosen yet."""
        stage = self.folder.stage(self.iteration + 1, "examples")
        chosen = self.folder.files(stage) if self.folder.committed(stage) else None
        learnt = None if chosen is None else {file.name: file for file in chosen}
        for split in ("train",) if self.wanted.kept else SPLITS:
            for name in unit_files.of_split(self.files, split):
                if self.wanted.id and self.wanted.id not in files.read(name, ["id"])["id"].to_pylist():
                    continue
                ids = None if learnt is None else _ids(learnt.get(Path(name).name))
                for row in files.read(name).to_pylist():
                    if self.wanted.id in (None, row["id"]):
                        yield row, ids

    def head(self, read: int, shown: int) -> list[Block]:
        """What is to be known of all questions."""
        section, reward = self.section, self.settings.reward
        found = [
            ["recipe", f"{section.recipe} {section.variant}: learns {self.recipe.keeps(section)}"],
            ["reward", f"{_in_words(reward)}; right from {section.threshold:g} on"],
            ["shown", f"{shown} of the {read} questions that were read, train first, in the run's order"],
        ]
        if self.wanted.disputed:
            others = ", ".join(name for name in rewards.REWARDS if name != "choice")
            compared = f"choice if there are choices, else {others} (math: references with a digit or LaTeX)"
            found.append(["compared with", f"{compared}; of what follows the answer marker, if it is there"])
        return [Table(("", ""), found)]

    def grade(self, reward: config.Reward, text: Text, row: Row) -> tuple[float, str | None]:
        """The reward of a text by any grader, and the grader's failure."""
        if reward not in self._graders:
            self._graders[reward] = rewards.grader(reward, self.settings.prompts.answer_marker)
        return self._graders[reward](text.answer, row)

    def close(self) -> None:
        """End the graders' child processes."""
        for grader in self._graders.values():
            grader.close()

    def _iteration(self) -> int:
        """The iteration whose texts are shown.

        Raises:
            FileNotFoundError: it has none yet.
        """
        done = [
            int(path.parent.parent.name.removeprefix("iteration_").replace("base", "0"))
            for path in self.folder.path.glob(f"*/rollouts/{store.COMMIT_MARK}")
        ]
        asked = self.wanted.iteration
        if not done or (asked is not None and asked not in done):
            whose = "a model" if asked is None else iteration_name(asked)
            found = ", ".join(map(iteration_name, sorted(done))) or "none"
            raise FileNotFoundError(
                f"stasc look: expected finished rollouts of {whose} in {self.folder.path}, found those of "
                f"{found}; `stasc run` makes them"
            )
        learnt = [n for n in done if self.folder.committed(self.folder.stage(n + 1, "examples"))]
        return asked if asked is not None else max(learnt or done)


class _Traced:
    """A question's trace, and what the recipe makes of it."""

    def __init__(self, run: _Run, row: Row, learnt_ids: set[str] | None) -> None:
        self.run, self.row, self.learnt_ids = run, row, learnt_ids
        self.texts = read_texts(row)
        self.failed = any(text.grader_error for text in self.texts)
        self.chosen = self._choose()
        self.answers = [text for text in self.texts if text.turn in run.recipe.answers]

    def is_wanted(self) -> bool:
        """Whether all that was asked for applies."""
        wanted = self.run.wanted
        return (
            (wanted.transition is None or wanted.transition in self.transitions())
            and (not wanted.kept or any(map(self._is_learnt, self.chosen.kept)))
            and (not wanted.disputed or bool(self.disputes))
        )

    def blocks(self) -> list[Block]:
        """The question, its texts, who disagrees about them, and a kept example of each class."""
        row = self.row
        found: list[Block] = [Said("question", row["question"]), Table(("", ""), list(facts(row)))]
        found += [Note(row["error"], warns=True)] if row["error"] else []
        for text in self.texts:
            right = None if text.reward is None else text.reward >= self.run.section.threshold
            found.append(Said(f"{_name(text)}: {', '.join(self._about(text))}", text.text, right))
        return [*found, *self.disputes, *self._masks()]

    def transitions(self) -> set[str]:
        """What first answers became."""
        answers, threshold = self.run.recipe.answers, self.run.section.threshold
        pairs = [(root, last) for root in roots(self.texts) for last in finals(self.texts, root, answers)]
        return {transition(root.reward or 0.0, last.reward or 0.0, threshold) for root, last in pairs}

    @cached_property
    def disputes(self) -> list[Block]:
        """A table of the answers that one reward calls right and another wrong; none if there is none."""
        ours, marker = self.run.settings.reward, self.run.settings.prompts.answer_marker
        threshold, rows = self.run.section.threshold, []
        for text in self.answers:
            others = list(other_rewards(ours, self.row, text, marker)) if text.reward is not None else []
            graded = [(other, *self.run.grade(other, text, self.row)) for other in others]
            said = [(_in_words(other), value >= threshold) for other, value, error in graded if not error]
            right = text.graded >= threshold
            if any(other != right for _, other in said):
                words = [
                    ", ".join(name for name, value in said if value is wanted) for wanted in (True, False)
                ]
                ours_in_words = f"{_in_words(ours)} (the run's)"
                words[not right] = ", ".join(filter(None, [ours_in_words, words[not right]]))
                rows.append([_name(text), *words])
        return [Table(("disputed", "right by", "wrong by"), rows)] if rows else []

    def _choose(self) -> Chosen:
        if self.row["split"] != "train" or self.failed:
            return Chosen([], [], [])
        run = self.run
        seed = Selecting(run.settings, run.iteration + 1).seed
        return choose(run.recipe, self.row, self.texts, train_plan(run.settings, run.iteration), seed)

    def _is_learnt(self, example: Example) -> bool:
        return self.learnt_ids is None or example.id in self.learnt_ids

    def _about(self, text: Text) -> Iterator[str]:
        """What is to be said of a text."""
        yield "not graded" if text.reward is None else f"reward {text.reward:.3g}"
        if text.grader_error:
            yield f"the grader failed: {text.grader_error}"
        if text.answer_start:
            yield f"its first {text.answer_start} characters are reasoning, which is not graded"
        if text.cut:
            yield "cut at max_tokens"
        yield f"{len(text.token_ids)} tokens by {text.writer}"
        yield self._why(text)

    def _why(self, text: Text) -> str:
        """Why a text is learnt or not."""
        if self.row["split"] != "train":
            return f"not learnt, a {self.row['split']} question"
        if self.failed:
            return "not learnt, the grader failed on a text of this question"
        kinds: dict[str, list[str]] = defaultdict(list)
        for example in self.chosen.kept:
            if (role := _role(example, text)) is not None:
                kinds["kept" if self._is_learnt(example) else "thinned"].append(example.kind + role)
        if kinds["kept"]:
            when = "kept" if self.learnt_ids is not None else "to be kept"
            return f"{when} as {', '.join(dict.fromkeys(kinds['kept']))}"
        if kinds["thinned"]:
            return "chosen, then dropped: too many of its class for the shares that the recipe aims at"
        section = self.run.section
        if any(_role(one, text) is not None for one in self.chosen.beyond_cap):
            most = section.max_examples_per_question
            return f"chosen, but beyond algorithm.max_examples_per_question = {most}"
        if any(_role(one, text) is not None for one in self.chosen.cut):
            return "chosen, but cut at max_tokens (algorithm.keep_truncated = false)"
        return "not chosen"

    def _masks(self) -> Iterator[Block]:
        first = {one.kind: one for one in reversed(self.chosen.kept) if self._is_learnt(one)}
        for example in first.values():
            if isinstance(self.run.chat, str):
                yield Note(f"the mask can't be shown: {self.run.chat}", warns=True)
                return
            yield from mask(self.run.chat, example, self.run.settings.finetune.max_length_tokens)


def other_rewards(ours: config.Reward, row: Row, text: Text, marker: str) -> Iterator[config.Reward]:
    """Shipped rewards that an answer could be graded by as well.

    With choices that is `choice`, else every other; `math` only if a reference has a digit or LaTeX. They
    read what follows the answer marker if there is one, else the whole text. A reward that the run gives for
    the whole text is compared with itself for what follows the marker.
    """
    marked = bool(marker.strip() and rewards.after_marker(text.answer, marker))
    scope = "after_marker" if marked else "whole_text"
    mathematical = any(set(reference) & set("0123456789\\") for reference in row["answers"])
    for name in rewards.REWARDS:
        other = ours.model_copy(update={"name": name, "scope": scope})
        applies = (name == "choice") == bool(row["choices"]) and (name != "math" or mathematical)
        same = name == ours.name and scope in (ours.scope, "whole_text")
        if applies and not same and not rewards.unmatchable(row, other, marker):
            yield other


def _role(example: Example, text: Text) -> str | None:
    """What a text is in an example, as words after its class; None: no loss falls on it there."""
    for number, messages in enumerate(example.sides):
        pieces = [piece for message in messages for piece in message.get("pieces") or ()]
        # `is`: not an equal text's
        if any(piece["train"] and piece.get("token_ids") is text.token_ids for piece in pieces):
            side = (", chosen", ", rejected")[number] if example.rejected is not None else ""
            return side + (f", weight {example.weight:+.3g}" if example.weight != 1 else "")
    return None


def _name(text: Text) -> str:
    """`correction 1 of answer 0`."""
    return " of ".join(f"{one.turn} {one.sample}" for one in reversed(text.lineage))


def _in_words(reward: config.Reward) -> str:
    return f"{reward.name} of the {'whole text' if reward.scope == 'whole_text' else 'final answer'}"


def _ids(file: Path | None) -> set[str]:
    return set(files.read(file, ["id"])["id"].to_pylist()) if file else set()
