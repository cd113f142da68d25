"""One question through everything before an engine starts: each refusal says what was found and what to do."""

import time
from typing import Any

import pytest
from harness import trl_templates
from harness.traces import settings

from stasc_ray import rehearsal
from stasc_ray.recipes import RECIPES
from stasc_ray.runtime import model_folder
from stasc_ray.tasks import rewards, sandbox
from stasc_ray.tasks.chat import Chat

ROW = {"id": "q1", "question": "What is 2 + 3?", "answers": ["5"], "documents": [], "choices": []}
CHOICE = {**ROW, "question": "Which?", "answers": ["B"], "choices": ["red", "blue"]}
TOKENIZER = model_folder.load_tokenizer(str(sandbox.model_path()))


ROOM = (
    "prompts.preset=sandbox",
    "engine.max_model_len_tokens=19000",
    "finetune.max_length_tokens=19000",
)


def rehearse(*overrides: str, row: dict[str, Any] = ROW, tokenizer: Any = TOKENIZER) -> list[str]:
    rows = {split: [{**row, "split": split}] for split in ("train", "dev", "test")}
    return rehearsal.rehearse(settings(*ROOM, *overrides), tokenizer, rows)


def always_raises(answer: str, references: Any) -> float:
    raise KeyError("score")


def never_pays(answer: str, references: Any) -> float:
    return 0.0


def pays_tags(answer: str, references: Any) -> float:
    return float(f"<answer>{references[0]}</answer>" in answer)


def pays_anything(answer: str, references: Any) -> float:
    return 1.0


HERE = f"reward.name={__name__}"


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("preset", ["sandbox", "qa", "math"])
def test_what_ships_passes(recipe: str, preset: str):
    started = time.monotonic()
    assert rehearse(f"algorithm.recipe={recipe}", f"prompts.preset={preset}") == []
    assert time.monotonic() - started < 10


def test_a_trace_is_made_up_in_the_recipes_turns():
    given = settings("algorithm.recipe=verdict")
    with_reward = rewards.grader(given.reward, given.prompts.answer_marker)
    texts = rehearsal.made_up(Chat(TOKENIZER), given, ROW, with_reward, right=False)
    found = [(text.turn, text.reward) for text in texts]
    assert found[0] == ("answer", 0.0) and ("verdict", 1.0) in found and ("correction", 1.0) in found


@pytest.mark.parametrize(
    ("overrides", "row", "message"),
    [
        (
            ("reward.scope=after_marker", "prompts.marker_unasked=false"),
            ROW,
            r"expected prompts that ask for '='.*whole_text",
        ),
        ((f"{HERE}:always_raises",), ROW, r"fails on all of the 3 questions .*'score'.*reward\.example"),
        (
            (f"{HERE}:never_pays",),
            ROW,
            r"found 0 for all of the 3 .*'5'.*reward\.rehearse = false",
        ),
        ((f"{HERE}:pays_tags",), ROW, r"found 0 for all of the 3 .*'5'"),
        (
            ("engine.max_model_len_tokens=60",),
            ROW,
            r"max_model_len_tokens: expected at least \d+, found 60: the prompt of turn",
        ),
        (
            ("finetune.max_length_tokens=8",),
            ROW,
            r"finetune\.max_length_tokens: .*found 8, while one .* has \d+ tokens",
        ),
        (
            ("model.chat_template_kwargs={enable_thinkin=false}",),
            ROW,
            r"it reads none\), found 'enable_thinkin'",
        ),
    ],
)
def test_what_would_fail_later_is_refused(overrides: tuple[str, ...], row: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        rehearse(*overrides, row=row)


def test_a_reward_with_a_form_of_its_own_is_tried_in_that_form():
    assert rehearse(f"{HERE}:pays_tags", "reward.example=<answer>{answer}</answer>") == []


def test_a_reward_whose_references_are_no_answers_can_be_left_untried():
    (note,) = rehearse(f"{HERE}:always_raises", "reward.rehearse=false")
    assert "nothing to learn" in note


def test_words_are_those_that_the_template_reads():
    tokenizer = trl_templates.tokenizer_of("qwen3")
    assert rehearse("model.chat_template_kwargs={enable_thinking=false}", tokenizer=tokenizer) == []
    for wrong in ("think", "messages", "add_generation_prompt"):
        with pytest.raises(ValueError, match=r"reads \(.*enable_thinking.*found"):
            rehearse(f"model.chat_template_kwargs={{{wrong}=true}}", tokenizer=tokenizer)


def test_the_longest_question_and_the_longest_texts_are_measured():
    given = settings(*ROOM, "engine.max_model_len_tokens=600")
    rows = {"train": [{**ROW, "split": "train"}, {**ROW, "question": "x" * 900, "split": "train"}]}
    with pytest.raises(ValueError, match="of turn 'answer' has 9"):
        rehearsal.rehearse(given, TOKENIZER, rows)
    (note,) = rehearse("engine.max_model_len_tokens=400")
    assert "has no room for the longest texts: the prompt of turn 'correction' may" in note


def test_the_turns_of_evaluation_are_rehearsed_too():
    given = settings(*ROOM, "algorithm.recipe=verdict", "evaluation.rounds=2")
    reward = rewards.grader(given.reward, given.prompts.answer_marker)
    row = {**ROW, "split": "test"}
    turns = [text.turn for text in rehearsal.made_up(Chat(TOKENIZER), given, row, reward, right=False)]
    assert turns[:3] == ["answer", "verdict", "correction"] and turns.count("correction") == 2


def test_a_reward_that_pays_anything_is_named():
    note, *_ = rehearse(f"{HERE}:pays_anything")
    assert "pays 'no such answer' as well as the right answer for 3 of 3" in note


def test_choices_are_asked_and_graded_by_letter():
    assert rehearse("reward.name=choice", row=CHOICE) == []


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "llava_next"])
def test_templates_of_image_models_are_refused_with_a_way_out(name: str):
    with pytest.raises(ValueError, match=r"chat template.*text model"):
        rehearse(tokenizer=trl_templates.tokenizer_of(name))


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_think", "deepseek_r1_distill", "gptoss", "gemma4", "muse_glimmer"]
)
def test_families_that_think_pass(name: str):
    assert rehearse(tokenizer=trl_templates.tokenizer_of(name)) == []
