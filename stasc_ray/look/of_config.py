"""What `stasc look` shows of a config before anything runs: questions, prompts, examples, how answers are
graded.
"""

from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from stasc_ray import config, rehearsal
from stasc_ray.look.tokens import as_tokens, facts, load_chat, mask
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.recipe import train_plan
from stasc_ray.recipes.selection import choose
from stasc_ray.report.figures import Table
from stasc_ray.report.look_page import Block, Note, Page, Part, Said, Tokens
from stasc_ray.runtime import gguf, model_folder
from stasc_ray.stages import base_model
from stasc_ray.tasks import reasoning, rewards
from stasc_ray.tasks.chat import Chat
from stasc_ray.tasks.questions import SPLITS, LoadedQuestions, load_questions

Row = Mapping[str, Any]
UNMATCHED = 10
"""Questions that can never score that are listed."""
EXPECTED = {(True, False): "! right, but not paid", (False, True): "! wrong, but paid"}


def look_at_config(settings: config.Config, id: str | None = None) -> Page:
    """Questions as they are loaded; one of each split (or the one with this id) as a run would ask, grade and
    learn it.

    Raises:
        ValueError, OSError: the questions or the tokenizer can't be loaded, or there is no such question.
    """
    splits = SPLITS if settings.algorithm.iterations else ("test",)
    skipping = settings.questions.model_copy(update={"on_bad_row": "skip"})
    loaded = load_questions(skipping, settings.seed, splits)
    marker = settings.prompts.answer_marker
    unmatched = {
        row["id"]: why for row in loaded.rows if (why := rewards.unmatchable(row, settings.reward, marker))
    }
    rows = [row for row in loaded.rows if row["id"] not in unmatched]
    by_split = {split: [row for row in rows if row["split"] == split] for split in splits}
    chat = load_chat(settings)
    parts = [
        Part("Questions", list(_questions(settings, loaded, by_split, unmatched))),
        Part("What a run says before it starts", list(_rehearsed(settings, chat, by_split))),
    ]
    reward = rewards.grader(settings.reward, marker)
    try:
        for row in _shown(by_split, id):
            others = [
                one for one in by_split[row["split"]][: rehearsal.ROWS] if one["answers"] != row["answers"]
            ]
            blocks = [*_as_asked(chat, settings, row, reward), _graded(settings, row, reward, others[:1])]
            parts.append(Part(f"{row['split']}: {row['id']}", blocks))
    finally:
        reward.close()
    section = settings.algorithm
    kicker = f"{section.recipe} {section.variant} with {settings.model.path}, before anything runs"
    return Page(kicker, settings.name, parts)


def _shown(by_split: Mapping[str, Sequence[Row]], id: str | None) -> list[Row]:
    if id is None:
        return [rows[0] for rows in by_split.values() if rows]
    found = [row for rows in by_split.values() for row in rows if row["id"] == id]
    if not found:
        known = ", ".join(repr(rows[0]["id"]) for rows in by_split.values() if rows)
        raise ValueError(f"--id: expected a question's id such as {known}, found {id!r}")
    return found


def _questions(
    settings: config.Config,
    loaded: LoadedQuestions,
    by_split: Mapping[str, Sequence[Row]],
    unmatched: Mapping[str, str],
) -> Iterator[Block]:
    """What was loaded, and what was not and why."""
    given, rows = settings.questions, []
    for split, found in by_split.items():
        own = getattr(given, split)
        source = own.source or f"{given.train.source} (train's)"
        rows.append([split, str(len(found)), source + (f" [{own.split}]" if own.split else "")])
    yield Table(("split", "questions", "source"), rows)
    yield Note(
        f"{loaded.dropped_duplicates} duplicates dropped; a text stays in test before dev before train"
    )
    if near := loaded.train_equal + loaded.train_near:
        what = (
            "left out"
            if loaded.near_dropped
            else 'kept; questions.on_near_duplicate = "drop" leaves them out'
        )
        yield Note(
            f"{near} train questions equal one of dev or test but for spelling ({loaded.train_equal}) or are "
            f"near one ({loaded.train_near}): {what}",
            warns=not loaded.near_dropped,
        )
        yield Table(("the first of them",), [[one] for one in loaded.near_examples])
    if loaded.retrieved:
        yield Note(f"{loaded.retrieved} questions got their documents from questions.corpus")
    stops = given.on_bad_row == "fail"
    then = 'a run stops at them; repair them, or set questions.on_bad_row = "skip"' if stops else "left out"
    if loaded.skipped_bad_rows:
        yield Note(f"{loaded.skipped_bad_rows} bad rows: {then}", warns=stops)
        yield Table(("file, line and reason of the first",), [[one] for one in loaded.bad_row_examples])
    if unmatched:
        yield Note(
            f"{len(unmatched)} questions can never score by reward {settings.reward.name}: {then}",
            warns=stops,
        )
        yield Table(("id", "reason"), [[id, why] for id, why in list(unmatched.items())[:UNMATCHED]])


def _model_problem(settings: config.Config) -> str | None:
    path = base_model(settings)
    how: dict[str, Any] = {
        "revision": model_folder.revision(path, settings.model),
        "trust_remote_code": settings.model.trust_remote_code,
    }
    try:
        model_folder.check_model(path)
        if not gguf.is_gguf(path):  # converted, and checked then
            model_folder.check_context(path, settings.engine.max_model_len_tokens, **how)
            if settings.algorithm.iterations:
                model_folder.check_trainable(path, **how)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _rehearsed(settings: config.Config, chat: Chat, by_split: Mapping[str, Sequence[Row]]) -> Iterator[Block]:
    """What the checks of the model and `rehearsal.rehearse` note or refuse."""
    if problem := _model_problem(settings):
        yield Note(f"a run would stop: {problem}", warns=True)
    rows = {split: found[: rehearsal.ROWS] for split, found in by_split.items() if found}
    if len(rows) < len(by_split):
        yield Note("a split has no questions left: a run would stop", warns=True)
    try:
        notes = rehearsal.rehearse(settings, chat.tokenizer, rows)
    except ValueError as error:
        yield Note(f"a run would stop: {error}", warns=True)
        return
    yield from (Note(note, warns=True) for note in notes)
    if not notes:
        yield Note(
            "nothing: one question of each split went through rendering, grading, selection and encoding"
        )


def _as_asked(chat: Chat, settings: config.Config, row: Row, reward: rewards.Grader) -> Iterator[Block]:
    """A question, the prompt of every turn that the recipe asks, an example of each class that it learns."""
    yield Said("question", row["question"])
    yield Table(("", ""), list(facts(row)))
    asked: dict[str, list[int]] = {}
    recipe, plan, examples = recipe_of(settings.algorithm.recipe), train_plan(settings, 0), {}
    try:
        for right in (False, True):
            texts = rehearsal.made_up(chat, settings, row, reward, right=right, on_prompt=asked.setdefault)
            for example in choose(recipe, row, texts, plan, settings.seed).kept:
                examples.setdefault(example.kind, example)
    except ValueError as error:
        yield Note(str(error), warns=True)
    for turn, ids in asked.items():
        yield Tokens(f"prompt of the turn `{turn}`, {len(ids)} tokens", as_tokens(chat, ids))
    for example in examples.values() if row["split"] == "train" else ():
        yield from mask(chat, example, settings.finetune.max_length_tokens, "with made-up texts, ")


def _graded(settings: config.Config, row: Row, reward: rewards.Grader, others: Sequence[Row]) -> Block:
    """How answers of all sorts are graded."""
    lines, threshold = [], settings.algorithm.threshold
    for what, text, right in sample_answers(settings, row, others):
        value, error = reward(text[reasoning.answer_start(text) :], row)
        said = EXPECTED.get((right, value >= threshold), "") if right is not None else ""
        lines.append([what, text.replace("\n", " \u23ce "), f"{value:.3g}", f"! {error}" if error else said])
    scope = "whole text" if settings.reward.scope == "whole_text" else "final answer"
    return Table((f"graded by {settings.reward.name} of the {scope}", "answer", "reward", ""), lines)


def sample_answers(
    settings: config.Config, row: Row, others: Sequence[Row]
) -> Iterator[tuple[str, str, bool | None]]:
    """(what it is, an answer, whether it is right; None: the reward's to say).

    Args:
        others: questions with other references.
    """
    right, wrong = rehearsal.right_answer(settings, row), rehearsal.wrong_answer(settings, row)
    reference, marker = str(row["answers"][0]), settings.prompts.answer_marker.strip()
    yield "a right answer, as asked", right, True
    for number, other in enumerate(row["answers"][1:4], start=2):
        yield f"reference {number}", rehearsal.right_answer(settings, {**row, "answers": [other]}), True
    yield "a wrong answer", wrong, False
    for other in others:
        yield "another question's answer", rehearsal.right_answer(settings, other), False
    for letter, choice in zip(ascii_uppercase, row["choices"] or (), strict=False):
        if letter == reference:
            yield "the choice's text", rehearsal.right_answer(settings, {**row, "answers": [choice]}), None
    yield "the reference alone", reference, None
    yield "in a sentence", f"I think that it is {reference}.", None
    if marker:
        yield "after the marker", f"{marker} {reference}", None
        yield "in a sentence after the marker", f"{marker} I think that it is {reference}.", None
        last = wrong if wrong.startswith(marker) else f"{marker} {wrong}"
        yield "mentioned, then another one", f"It could be {reference}.\n{last}", False
    yield "cut in the middle", right[: right.rfind(reference) + len(reference) // 2], False
    yield "cut inside its reasoning", f"<think>\nIt is {reference}", False
    yield "nothing", "", False
