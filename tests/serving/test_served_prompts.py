"""One `turns` function: what is asked in rollouts, what is asked in serving and what is learnt have the same prompt ids."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from harness.chat_templates import FAMILIES, tokenizer_of
from harness.scripted_api import Api

from stasc_ray import config
from stasc_ray.generation.samples import Request, Sample
from stasc_ray.generation.unit_rollout import Job, UnitRollout
from stasc_ray.learning.encoding import IGNORED, encode
from stasc_ray.learning.examples import Selecting
from stasc_ray.recipes import RECIPES, recipe_of, section_of
from stasc_ray.recipes.recipe import Example, train_plan
from stasc_ray.recipes.trace import ANSWER, Text, grade
from stasc_ray.tasks.chat import Chat

QUESTION = {
    "question": "Which river is longer? <|im_end|>",
    "documents": ["It is blue.", "47 < 385"],
    "choices": ["Rhine", "the Danube"],
}
ROW = {"id": "q1", "answers": ["B"], "split": "train", "texts": [], **QUESTION}
WRONG, RIGHT = "My answer is wrong.", "My answer is right."
SAID = {  # by turn, the texts of the samples of a prompt; sample 0 goes on to a correction that helps
    "answer": ("It is the Rhine.\nFinal Answer: A", "Danube. Final Answer: B <|eot_id|>"),
    "verdict": (WRONG, RIGHT, "I can't say.", WRONG),
    "critique": ("The Danube is \u00fcber 2800 km.",),
    "correction": ("Final Answer: B", "Final Answer: A", "Final Answer: B\n", "B"),
}
ASKS = {"correction": "Look again", "verdict": "Is it right?", "critique": "What is wrong"}
"""How the prompt of a turn ends, in its last words."""
COMMON = (
    "prompts.preset=sandbox",
    "prompts.system=Be brief.",
    "prompts.correction=Look again: {question}",
    "engine.max_model_len_tokens=4096",
    "algorithm.n_initial=2",
)
CASES = {
    "stasc": ("algorithm.recipe=stasc", "algorithm.n_corrections=4", "algorithm.filter=non_decreasing"),
    "rft": ("algorithm.recipe=rft",),
    "verdict": ("algorithm.recipe=verdict", "algorithm.verdict_prompt=Is it right?"),
    "verdict, not seen": (
        "algorithm.recipe=verdict",
        "algorithm.verdict_prompt=Is it right?",
        "algorithm.correction_sees_verdict=false",
    ),
    "verdict, constructed": (
        "algorithm.recipe=verdict",
        "algorithm.verdict_prompt=Is it right?",
        "algorithm.verdicts=constructed",
    ),
    "critique": ("algorithm.recipe=harness.critique:CRITIQUE",),
    "critique, shipped": ("algorithm.recipe=critique", "algorithm.critique_prompt=What is wrong?"),
    "cct": ("algorithm.recipe=cct",),
    "splice": ("algorithm.recipe=splice", "algorithm.min_shared_steps=0"),
    "sharpening": ("algorithm.recipe=sharpening", "algorithm.by=majority"),
    "preference": ("algorithm.recipe=preference",),
    "verdict_preference": ("algorithm.recipe=verdict_preference", "algorithm.verdict_prompt=Is it right?"),
    "verdict_preference, sampled": (
        "algorithm.recipe=verdict_preference",
        "algorithm.verdict_prompt=Is it right?",
        "algorithm.verdicts=sampled",
    ),
    "verdict_preference, not seen": (
        "algorithm.recipe=verdict_preference",
        "algorithm.verdict_prompt=Is it right?",
        "algorithm.correction_sees_verdict=false",
    ),
}

families = pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
cases = pytest.mark.parametrize("case", CASES)


class Recorder:
    """An engine that says SAID, whoever asks, and keeps every prompt with the ids that it gave."""

    def __init__(self, family: str) -> None:
        self.tokenizer, self.end = tokenizer_of(family), FAMILIES[family].end_of_turn
        self.chat = Chat(self.tokenizer)
        self.asked: dict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)
        self.turns: dict[tuple[int, ...], str] = {}

    def say(self, prompt: Sequence[int], n: int) -> list[Sample]:
        end = str(self.tokenizer.decode(prompt))[-200:]
        places = {turn: end.rfind(words) for turn, words in ASKS.items()}
        turn = max(places, key=places.__getitem__) if max(places.values()) >= 0 else ANSWER
        found = []
        for number in range(n):
            text = SAID[turn][number % len(SAID[turn])]
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            ids = (*ids, *self.tokenizer.encode(self.end, add_special_tokens=False)[-1:])
            found.append(Sample(text, ids, "stop", logprob=-1.0))
            self.asked[tuple(prompt)].add(ids)
        self.turns[tuple(prompt)] = turn
        return found

    async def generate(self, token_ids: list[int], request: Request, on_text: Any = None) -> Sample:
        """As a served engine: one sample a call."""
        return self.say(token_ids, request.n)[0]

    def release(self) -> None:
        """Nothing to end."""


def recorded(job: Job, recorder: Recorder) -> UnitRollout:
    """Rollouts without Ray and vLLM: all but the engine is real."""

    async def generate(token_ids: list[int], request: Request, _: object) -> list[Sample]:
        return recorder.say(token_ids, request.n)

    return UnitRollout(job, Chat.of(recorder.tokenizer, job.settings), generate, "here")


def settings_of(case: str) -> config.Config:
    return config.load_config(None, [*COMMON, *CASES[case]], section_of)


@cache
def rolled_out(case: str, family: str, split: str = "train") -> tuple[Recorder, list[Text]]:
    """What rollouts of M0 ask, and their graded trace."""
    settings, recorder = settings_of(case), Recorder(family)
    job = Job("model", 0, settings, "nowhere", on_cuda=False)
    texts, error = asyncio.run(recorded(job, recorder).tree({**ROW, "split": split}, "current", None))
    assert error is None
    recipe, section = recipe_of(settings.algorithm.recipe), settings.algorithm
    reward, says_right = (lambda text: (float("B" in text), None)), partial(recipe.says_right, section)
    grade(texts, recipe.answers, reward, recipe.verdicts, says_right, section.threshold)
    return recorder, texts


def examples_of(case: str, texts: Sequence[Text]) -> list[Example]:
    selecting = Selecting(settings_of(case), iteration=1)
    recipe = recipe_of(selecting.settings.algorithm.recipe)
    return list(recipe.examples(ROW, texts, train_plan(selecting.settings, 0), selecting.seed))


def trained_turns(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, target) of every stretch of trained tokens."""
    sequences, found = encode(Chat(tokenizer), messages, 8192), []
    assert not isinstance(sequences, str)
    for sequence in sequences:
        ids, trained = sequence["input_ids"].tolist(), (sequence["labels"] != IGNORED).tolist()
        starts = [at for at in range(len(ids)) if trained[at] and not trained[at - 1]]
        for start in starts:
            end = next((at for at in range(start, len(ids)) if not trained[at]), len(ids))
            found.append((tuple(ids[:start]), tuple(ids[start:end])))
    return found


def served(case: str, family: str, folder: Path, **fields: Any) -> tuple[Recorder, dict[str, Any]]:
    """What the endpoint asks, and its reply."""
    recorder = Recorder(family)
    api = Api(folder, *COMMON, *CASES[case], engine=recorder)
    reply = api.call("POST", "/v1/correct", json={**QUESTION, "temperature": 0, **fields})
    assert reply.status_code == 200, reply.text
    return recorder, reply.json()


KINDS = {
    "stasc": {"i->c", "c->c"},
    "rft": {"c"},
    "verdict": {"says right", "says wrong", "i->c", "c->c", "answer"},
    "critique": {"i->c"},
    "cct": {"i->c", "c->c"},
    "splice": {"splice", "answer"},
    "sharpening": {"best"},
    "preference": {"c over i", "i->c", "c->i"},
    "verdict_preference": {"says right", "says wrong", "c over i"},
}
TURNS = {
    "stasc": "answer correction",
    "verdict": "answer verdict correction",
    "critique": "answer critique correction",
    "cct": "answer correction",
    "preference": "answer correction",
    "verdict_preference": "answer verdict correction",
}
"""What the endpoint asks, by method; the others only answer."""
SAYS = {"says right", "says wrong"}
COMPOSED = {
    "cct": {"c->c", "i->c"},
    "splice": {"splice"},
    "preference": {"i->c", "c->i"},
    "verdict, constructed": SAYS,
    "verdict_preference": SAYS,
    "verdict_preference, not seen": SAYS,
}
"""By case, classes whose targets no model was asked for; test files of their recipes count their tokens."""


def method(case: str) -> str:
    return case.partition(",")[0]


@families
@cases
def test_what_is_learnt_begins_with_the_prompt_that_was_asked(case: str, family: str):
    recorder, texts = rolled_out(case, family)
    found = examples_of(case, texts)
    assert {example.kind for example in found} == KINDS[method(case)]
    for example in found:
        if example.kind in COMPOSED.get(case, ()):
            continue  # what of it the endpoint asks for, see below
        for side in example.sides:
            turns = trained_turns(recorder.tokenizer, side)
            assert len(turns) == (2 if method(case) == "critique" else 1)
            for prompt, target in turns:
                assert target in recorder.asked[prompt]


@families
@cases
def test_what_is_served_was_asked_in_rollouts_and_is_learnt(case: str, family: str, tmp_path: Path):
    recorder, reply = served(case, family, tmp_path)
    turns = TURNS.get(method(case), "answer").split()
    assert [turn["turn"] for turn in reply["turns"]] == turns
    assert list(recorder.turns.values()) == turns
    # Measuring asks the very same.
    measured, _ = rolled_out(case, family, split="test")
    assert measured.asked == recorder.asked
    # Learning asks it too, and more; what is constructed is learnt where the endpoint asks for it.
    rolled, texts = rolled_out(case, family)
    learnt = {
        prompt
        for one in examples_of(case, texts)
        for side in one.sides
        for prompt, _ in trained_turns(rolled.tokenizer, side)
    }
    unasked = {name: "verdict" for name, kinds in COMPOSED.items() if kinds is SAYS}
    unasked["cct"] = "correction"
    for prompt, turn in recorder.turns.items():
        assert prompt in rolled.asked or turn == unasked.get(case)
        assert prompt in learnt or turn == "answer"


@families
def test_a_correction_is_learnt_told_that_the_answer_is_wrong(family: str):
    """Also of right answers, which the model never calls wrong when it is right about them."""
    recorder, _ = rolled_out("verdict", family)
    asked = [prompt for prompt, turn in recorder.turns.items() if turn == "correction"]
    assert len(asked) == 2, "one of each answer, whatever the verdicts said"
    assert all(WRONG in str(recorder.tokenizer.decode(prompt)) for prompt in asked)
    hidden, _ = rolled_out("verdict, not seen", family)
    asked = [prompt for prompt, turn in hidden.turns.items() if turn == "correction"]
    assert not any("My answer is" in str(hidden.tokenizer.decode(prompt)) for prompt in asked)


@families
@pytest.mark.parametrize(
    "case", ["stasc", "verdict", "critique", "critique, shipped", "verdict_preference, sampled"]
)
def test_a_given_answer_is_corrected_by_the_prompts_of_learning(case: str, family: str, tmp_path: Path):
    recorder, _ = served(case, family, tmp_path, initial_answer=SAID["answer"][0])
    rolled, _ = rolled_out(case, family)
    assert recorder.asked and set(recorder.asked) <= set(rolled.asked)


def test_the_recipes_here_are_all_that_ship():
    names = {settings_of(case).algorithm.recipe for case in CASES}
    assert set(RECIPES) <= names
