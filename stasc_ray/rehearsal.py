"""One real question of each split through everything, with made-up texts, before an engine starts.

Render, ask, grade, select, encode, pack: what can fail later fails here, in seconds, and costs nothing.
Reads questions, a tokenizer and the config; writes nothing.
"""

import asyncio
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from stasc_ray import config
from stasc_ray.learning import encoding, objectives
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.policies import answer
from stasc_ray.recipes.recipe import plan_for, train_plan
from stasc_ray.recipes.selection import choose
from stasc_ray.recipes.trace import ANSWER, Text, grade
from stasc_ray.tasks import prompts, reasoning, rewards
from stasc_ray.tasks.chat import Chat, Message, content

Row = Mapping[str, Any]
OnPrompt = Callable[[str, list[int]], Any]
ROWS = 20
"""Questions of each split whose references are graded."""
_RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
"""What the rendering itself passes."""
WRONG = "no such answer"
MARKED_WRONG = {"choice": "?", "math": "-918273.5"}


def rehearse(settings: config.Config, tokenizer: Any, rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Put the first question of each split through a run's stages.

    Args:
        settings: the run's config.
        tokenizer: of the base model.
        rows: the first Question rows of each split; all of them are graded, to know what the reward pays.

    Returns:
        What a person should know, one line each.

    Raises:
        ValueError: what would fail later; expected, found, what to do.
    """
    chat = _chat(settings, tokenizer)
    _check_marker(settings, next(iter(rows.values()))[0])
    reward = rewards.grader(settings.reward, settings.prompts.answer_marker)
    try:
        every = [row for split in rows.values() for row in split]
        notes = _check_reward(settings, reward, every) if settings.reward.rehearse else []
        for split, (first, *others) in rows.items():
            traces = [
                made_up(chat, settings, first, reward, right=right, notes=notes) for right in (False, True)
            ]
            if others:  # for its prompts' lengths alone
                longest = max(others, key=lambda row: len(row["question"]) + sum(map(len, _documents(row))))
                made_up(chat, settings, longest, reward, right=False, notes=notes)
            if split == "train":
                notes += _check_examples(chat, settings, first, traces)
    finally:
        reward.close()
    return list(dict.fromkeys(notes))


def made_up(
    chat: Chat,
    settings: config.Config,
    row: Row,
    reward: rewards.Grader,
    *,
    right: bool,
    on_prompt: OnPrompt = lambda turn, token_ids: None,
    notes: list[str] | None = None,
) -> list[Text]:
    """A graded trace of what is asked about a question of its split, written by no model.

    Args:
        right: whether the first answers are right; what follows them is.
        on_prompt: gets every turn that is asked, with the token ids (T,) of its prompt.
        notes: gets what a person should know of the prompts' lengths.

    Raises:
        ValueError: the chat template refuses a turn's conversation, or a prompt leaves no room for a text.
    """
    recipe, section = recipe_of(settings.algorithm.recipe), settings.algorithm
    ask = _MadeUpAsk(chat, settings, row, right, on_prompt)
    split = row.get("split", "train")
    policy = "recipe" if split == "train" else settings.evaluation.policy
    asyncio.run(answer(policy, recipe, row, ask, plan_for(settings, 0, split)))
    if notes is not None:
        notes += ask.notes
    says_right = partial(recipe.says_right, section)
    pays = partial(reward, question_row=row)
    grade(ask.texts, recipe.answers, pays, recipe.verdicts, says_right, section.threshold)
    return ask.texts


def right_answer(settings: config.Config, row: Row) -> str:
    """A right answer to the question, written as the run asks for it."""
    reference = str(row["answers"][0])
    if settings.reward.example:
        return settings.reward.example.replace("{answer}", reference)
    marker = settings.prompts.answer_marker
    return f"{marker} {reference}" if settings.reward.scope == "after_marker" else reference


def wrong_answer(settings: config.Config, row: Row) -> str:
    """A wrong answer in the same form."""
    return right_answer(settings, {**row, "answers": [MARKED_WRONG.get(settings.reward.name, WRONG)]})


class _MadeUpAsk:
    """An `Ask` that renders each conversation as a run does, and answers it without a model."""

    def __init__(
        self, chat: Chat, settings: config.Config, row: Row, right: bool, on_prompt: OnPrompt
    ) -> None:
        self.chat, self.settings, self.row, self.right = chat, settings, row, right
        self.on_prompt, self.notes = on_prompt, []
        self.texts: list[Text] = []

    async def __call__(
        self,
        turn: str,
        messages: Sequence[Message],
        *,
        n: int = 1,
        parent: Text | None = None,
        logprob: bool = False,
        budget: float = 1.0,
    ) -> list[Text]:
        prompt = _rendered(self.chat, messages, turn)
        self.on_prompt(turn, prompt)
        self._check_room(turn, len(prompt), parent)
        opened = self.chat.opens(prompt)
        texts = [self._text(turn, number, parent, opened) for number in range(n)]
        for text in texts:
            text.logprob = -1.0 if logprob else None
        self.texts += texts
        return texts

    def _text(self, turn: str, number: int, parent: Text | None, opened: bool) -> Text:
        opening = self.chat.opening if opened else ""
        said = reasoning.shaped(self._said(turn, number), self.chat.template, opening)
        ids = [*self.chat.tokenizer.encode(said, add_special_tokens=False), *self.chat.closing[1]]
        start = reasoning.answer_start(said, opened=opened)
        return Text(turn, said, number, parent, token_ids=ids, answer_start=start)

    def _said(self, turn: str, number: int) -> str:
        section, recipe = self.settings.algorithm, recipe_of(self.settings.algorithm.recipe)
        if turn in recipe.verdicts:
            phrases = [getattr(section, name, turn) for name in ("says_wrong", "says_right")]
            return str(phrases[(number + self.right) % 2])
        if turn == ANSWER and not self.right:
            return wrong_answer(self.settings, self.row)
        return right_answer(self.settings, self.row)

    def _check_room(self, turn: str, found: int, parent: Text | None) -> None:
        """Refuse a prompt that leaves no room for its text; note one that a long answer may make so long."""
        limit, name = self.settings.engine.max_model_len_tokens, _sampling_of(turn)
        most = getattr(self.settings.sampling, name).max_tokens
        if found + most > limit:
            raise ValueError(
                f"engine.max_model_len_tokens: expected at least {found + most}, found {limit}: the prompt "
                f"of turn {turn!r} has {found} tokens (question {self.row['id']!r}), and its text may have "
                f"sampling.{name}.max_tokens = {most}; raise it, lower max_tokens, or shorten prompts and "
                "documents"
            )
        longest = getattr(self.settings.sampling, _sampling_of(parent.turn)).max_tokens if parent else 0
        more = found + longest - len(parent.token_ids) if parent else found
        if more + most > limit:
            self.notes.append(
                f"engine.max_model_len_tokens = {limit} has no room for the longest texts: the prompt of "
                f"turn {turn!r} may have {more} tokens and its text {most}; such texts are cut, or fail"
            )


def _sampling_of(turn: str) -> str:
    return "initial" if turn == ANSWER else "correction"


def _documents(row: Row) -> list[str]:
    documents = row.get("documents")
    return [] if documents is None else list(documents)


def _chat(settings: config.Config, tokenizer: Any) -> Chat:
    """How conversations are rendered, and that a turn ends."""
    chat = Chat.of(tokenizer, settings)
    read = _words_of(chat.template)
    unread = [word for word in settings.model.chat_template_kwargs if word not in read or word in _RESERVED]
    if unread:
        raise ValueError(
            "model.chat_template_kwargs: expected words that the chat template reads "
            f"({', '.join(sorted(read - _RESERVED)) or 'it reads none'}), found {unread[0]!r}; correct or "
            "remove it"
        )
    _rendered(chat, [prompts.user("?"), prompts.assistant("0"), prompts.user("?")], "probe")
    chat.closing  # noqa: B018 - raises if nothing ends a turn
    return chat


def _words_of(template: str) -> set[str]:
    """The words that a chat template reads from outside."""
    import jinja2.meta

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)  # transformers' own tag
    return jinja2.meta.find_undeclared_variables(environment.parse(plain))


def _rendered(chat: Chat, messages: Sequence[Message], turn: str) -> list[int]:
    from jinja2 import TemplateError

    try:
        ids = chat.render(messages, add_generation_prompt=True)
    except (TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"model.path: expected a chat template that renders the {turn} conversation ({roles}; contents "
            f"are text), found that it refuses it: {error}. Use a text model, or put another "
            "chat_template.jinja beside its tokenizer"
        ) from error
    return ids


def _check_marker(settings: config.Config, row: Row) -> None:
    """A marker that is graded by must be asked for."""
    marker = settings.prompts.answer_marker
    asked = "\n".join(content(message) for message in prompts.initial_messages(row, settings.prompts))
    graded_by = settings.reward.scope == "after_marker" and not settings.prompts.marker_unasked
    if graded_by and marker.strip().casefold() not in asked.casefold():
        raise ValueError(
            f"reward.scope = 'after_marker': expected prompts that ask for {marker!r} "
            "(prompts.answer_marker), found it in neither prompts.system, prompts.initial nor its "
            "demonstrations, so every answer would be graded 0; ask for it, set prompts.marker_unasked = "
            "true if the model writes it unasked, or reward.scope = 'whole_text'"
        )


def _check_reward(settings: config.Config, reward: rewards.Grader, rows: Sequence[Row]) -> list[str]:
    """That the reward runs, pays right answers and tells wrong ones apart."""
    right = [reward(right_answer(settings, row), row) for row in rows]
    wrong = [reward(wrong_answer(settings, row), row) for row in rows]
    tried = (
        f"the {len(rows)} questions that were tried, with {right_answer(settings, rows[0])!r} for references "
        f"{list(rows[0]['answers'])}"
    )
    ways = (
        "Correct the reward or the references; if right answers are written in another way, say how: "
        "reward.example = '<answer>{answer}</answer>'; if a reference is no answer (unit tests), "
        "reward.rehearse = false"
    )
    failed = [error for _, error in right if error]
    if len(failed) == len(rows):
        raise ValueError(
            f"reward.name = {settings.reward.name!r}: expected a number in [0, 1] for a right answer, found "
            f"that it fails on all of {tried}: {failed[0]}. {ways}"
        )
    unpaid = [row for row, (value, _) in zip(rows, right, strict=True) if not value]
    if len(unpaid) == len(rows):
        raise ValueError(
            f"reward.name = {settings.reward.name!r}: expected it to pay a right answer, found 0 for all of "
            f"{tried}. {ways}"
        )
    notes = []
    if unpaid:
        notes.append(
            f"the reward does not pay {len(unpaid)} of {len(rows)} questions' own references, such as "
            f"{list(unpaid[0]['answers'])} of {unpaid[0]['id']!r}"
        )
    paid_wrong = sum(bad[0] >= good[0] > 0 for good, bad in zip(right, wrong, strict=True))
    if paid_wrong:
        notes.append(
            f"the reward pays {wrong_answer(settings, rows[0])!r} as well as the right answer for "
            f"{paid_wrong} of {len(rows)} questions"
        )
    return notes


def _check_examples(chat: Chat, settings: config.Config, row: Row, traces: Sequence[list[Text]]) -> list[str]:
    """That what the recipe keeps can be encoded and packed."""
    recipe, plan = recipe_of(settings.algorithm.recipe), train_plan(settings, 0)
    found = [one for texts in traces for one in choose(recipe, row, texts, plan, settings.seed).kept]
    if not found:
        return [f"the made-up texts gave recipe {settings.algorithm.recipe!r} nothing to learn"]
    limit = settings.finetune.max_length_tokens
    encoded = []
    for example in found:
        pair, weight = example.rejected is not None, example.weight
        if problem := objectives.misfit(recipe.objective, pair=pair, weight=weight):
            raise ValueError(f"recipe {settings.algorithm.recipe!r}: {problem}")
    for messages in (messages for example in found for messages in example.sides):
        sequences = encoding.encode(chat, messages, sys.maxsize)
        if isinstance(sequences, str):
            continue
        found_tokens = max(len(sequence["input_ids"]) for sequence in sequences)
        if found_tokens > limit:
            raise ValueError(
                f"finetune.max_length_tokens: expected room for an example, found {limit}, while one with "
                f"short made-up texts (question {row['id']!r}) has {found_tokens} tokens; longer ones are "
                "left out. Set it to engine.max_model_len_tokens = "
                f"{settings.engine.max_model_len_tokens} to keep them all"
            )
        encoded += sequences
    encoding.pack(encoded, limit)
    return [] if encoded else ["the made-up examples have no text to learn, so none was encoded"]
