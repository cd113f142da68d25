"""What is trained is what was generated, in every chat template that trl ships; or it is refused."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from harness import trl_templates
from harness.chat_templates import CHATML
from jinja2 import TemplateError

from stasc_ray.config import Model, Prompts
from stasc_ray.learning.encoding import IGNORED, encode
from stasc_ray.recipes.recipe import learnt
from stasc_ray.recipes.trace import Text
from stasc_ray.tasks import reasoning
from stasc_ray.tasks.chat import Chat, hidden_tokens
from stasc_ray.tasks.prompts import correction_messages, initial_messages

QUESTION = {"id": "q1", "question": "What is 26 + 26?", "choices": [], "documents": []}
PROMPTS = Prompts(preset="math")
ANSWER = "Final Answer: 52"
REFUSED = {"idefics3", "llava_next", "smolvlm"}
"""Their contents must be lists of parts: image models."""


def generated(chat: Chat) -> str:
    """A correction as a model of this family writes it."""
    if "<|channel|>analysis" in chat.template:
        return (
            f"<|channel|>analysis<|message|>add<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}"
        )
    if "to=self" in chat.template:
        return f" to=self<|message|>add<|eom|><|start|>assistant to=user<|message|>{ANSWER}"
    if "<|channel>thought" in chat.template:
        return f"<|channel>thought\nadd\n<channel|>{ANSWER}"
    if "</think>" in chat.template:
        return ("" if chat.opening else "<think>\n") + f"add\n</think>\n\n{ANSWER}"
    return ANSWER


def as_text(chat: Chat, said: str, end: bool = True) -> Text:
    """As the engine gives it back."""
    ids = chat.tokenizer.encode(said, add_special_tokens=False) + (chat.closing[1] if end else [])
    hidden = hidden_tokens(chat.tokenizer)
    text = chat.tokenizer.decode([token for token in ids if token not in hidden])
    start = reasoning.answer_start(text, opened=bool(chat.opening))
    return Text("answer", text, token_ids=ids, answer_start=start, finish_reason="stop" if end else "length")


def trains(name: str) -> bool:
    return name.removesuffix("_training") not in REFUSED


@pytest.mark.parametrize("name", trl_templates.names())
def test_the_target_is_what_was_generated_or_the_template_is_refused(name: str):
    tokenizer = trl_templates.tokenizer_of(name)
    asked = correction_messages(QUESTION, "Final Answer: 51", PROMPTS)
    if not trains(name):
        with pytest.raises((ValueError, TemplateError)):
            Chat(tokenizer).closing  # noqa: B018
        return
    chat = Chat(tokenizer)
    prompt, text = chat.render(asked, add_generation_prompt=True), as_text(chat, generated(chat))
    found = encode(chat, [*asked, learnt(text)], 99999)
    assert not isinstance(found, str)
    (example,) = found
    assert example["input_ids"].tolist() == [*prompt, *text.token_ids]
    assert [label for label in example["labels"].tolist() if label != IGNORED] == list(text.token_ids)
    assert text.answer.strip() == ANSWER
    thinks = generated(chat) != ANSWER
    assert ("add" in text.text) is thinks and "add" not in text.answer


@pytest.mark.parametrize("name", filter(trains, trl_templates.names()))
@pytest.mark.parametrize("keep", [None, False, True])
def test_the_reasoning_of_an_earlier_answer_stays_or_goes_as_the_config_says(name: str, keep: bool | None):
    tokenizer = trl_templates.tokenizer_of(name)
    first = as_text(Chat(tokenizer), generated(Chat(tokenizer)).replace("add", "ponder"))
    if keep and reasoning.HEADER_END in first.text:
        with pytest.raises(ValueError, match="keep_reasoning"):
            Chat(tokenizer, keep_reasoning=keep).render(
                correction_messages(QUESTION, first.text, PROMPTS), add_generation_prompt=True
            )
        return
    chat = Chat(tokenizer, keep_reasoning=keep)
    asked = correction_messages(QUESTION, first.text, PROMPTS)
    shown = chat.tokenizer.decode(chat.render(asked, add_generation_prompt=True))
    assert ANSWER in shown
    if keep is False:
        assert "ponder" not in shown
    if keep and "ponder" in first.text:
        assert shown.count("ponder") == 1
        if "</think>" in first.text:
            assert re.search(r"<think>\nponder\n</think>\n\nFinal Answer: 52", shown)
    if keep is None and name in ("qwen3", "deepseek_r1_distill", "gemma4", "nemotron_3_nano", "glm4moe"):
        assert "ponder" not in shown, "these families drop the reasoning of earlier turns"


def test_questions_and_documents_cannot_forge_reasoning():
    chat = Chat(trl_templates.tokenizer_of("qwen3"))
    row = {**QUESTION, "question": "What does </think> mean?", "documents": ["<think>"]}
    (end,) = chat.tokenizer.encode("</think>", add_special_tokens=False)
    (start,) = chat.tokenizer.encode("<think>", add_special_tokens=False)
    ids = chat.render(initial_messages(row, PROMPTS), add_generation_prompt=True)
    assert end not in ids and start not in ids
    assert "What does </think> mean?" in chat.tokenizer.decode(ids)


def test_words_for_the_template_reach_it():
    tokenizer = trl_templates.tokenizer_of("qwen3")
    asked = initial_messages(QUESTION, PROMPTS)
    off = Chat(tokenizer, Model(chat_template_kwargs={"enable_thinking": False}))
    assert tokenizer.decode(off.render(asked, add_generation_prompt=True)).endswith("<think>\n\n</think>\n\n")
    assert not off.opening and not as_text(off, ANSWER).answer_start
    effort = Chat(
        trl_templates.tokenizer_of("gptoss"), Model(chat_template_kwargs={"reasoning_effort": "low"})
    )
    assert "Reasoning: low" in effort.tokenizer.decode(effort.render(asked, add_generation_prompt=True))


@pytest.mark.parametrize(("name", "day"), [("llama3_2", "02 Mar 2025"), ("gptoss", "2025-03-02")])
def test_templates_that_write_todays_date_get_the_runs(name: str, day: str):
    tokenizer = trl_templates.tokenizer_of(name)
    chat = Chat(tokenizer, Model.model_validate({"template_date": "2025-03-02"}))
    shown = tokenizer.decode(chat.render(initial_messages(QUESTION, PROMPTS), add_generation_prompt=True))
    assert f"{day}\n" in shown and time.strftime("%Y-%m-%d") not in shown


def test_a_date_in_a_format_that_is_made_up_elsewhere_is_refused():
    tokenizer: Any = trl_templates.tokenizer_of("qwen2_5")
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ strftime_now(format) }}" + CHATML
        with pytest.raises(ValueError, match="prompts would change over night"):
            Chat(tokenizer)
    finally:
        tokenizer.chat_template = before


def test_rendering_does_not_read_the_vocabulary_again():
    """Gemma has 6,415 added tokens; a rendering took 17 ms for them, a training example 102 ms."""
    tokenizer: Any = trl_templates.tokenizer_of("gemma")
    before = len(tokenizer)
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer.__class__.from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<bos>",
        eos_token="<eos>",
    )
    tokenizer.chat_template = trl_templates.tokenizer_of("gemma").chat_template
    tokenizer.add_tokens([f"<unused{number}>" for number in range(6400)], special_tokens=True)
    assert len(tokenizer) >= before + 6000
    chat = Chat(tokenizer)
    text = as_text(chat, ANSWER)
    asked = correction_messages({**QUESTION, "documents": ["river " * 300]}, "51", PROMPTS)
    encode(chat, [*asked, learnt(text)], 99999)
    started = time.perf_counter()
    for _ in range(10):
        encode(chat, [*asked, learnt(text)], 99999)
    plain = time.perf_counter()
    for _ in range(10):
        tokenizer.apply_chat_template([{"role": "user", "content": "river " * 300}])
    assert plain - started < 6 * (time.perf_counter() - plain) + 0.1


def test_both_lists_are_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    train, refused = page.split("## Chat templates that are refused")
    named = set(re.findall(r"`(\w+)`", train.split("## Chat templates that train")[1]))
    assert named == {name for name in trl_templates.names() if trains(name)}
    assert {name for name in trl_templates.names() if not trains(name)} <= set(
        re.findall(r"`(\w+)`", refused)
    )


NEMOTRON_V2 = """\
{%- set off = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join \
== '/no_think' %}{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + \
'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' + \
('\\n</think>\\n\\n' if off else '') }}{% endif %}"""


def test_whether_the_prompt_opens_the_reasoning_is_read_from_the_prompt_itself():
    """As in Nemotron Nano v2, where `/no_think` in the system text closes the block."""
    tokenizer: Any = trl_templates.fresh("qwen3", NEMOTRON_V2)
    chat = Chat(tokenizer)
    for system, opened in (("/no_think", False), ("/think", True), ("", True)):
        asked = initial_messages({**QUESTION, "question": "<think>"}, Prompts(preset="qa", system=system))
        assert chat.opens(chat.render(asked, add_generation_prompt=True)) is opened


def test_an_answer_cut_in_reasoning_that_its_prompt_opened_is_shown_as_empty():
    cut = Text("answer", "51? 52?", answer_start=7, finish_reason="length")
    assert (cut.answered, cut.said, cut.answer) == (False, "", "")
    ended = Text("answer", "51?</think>", answer_start=11)
    assert (ended.answered, ended.said, ended.answer) == (True, "51?</think>", "")
    seen = Text("answer", "<think>51?", answer_start=10)
    assert (seen.answered, seen.said) == (False, "<think>51?")


@pytest.mark.parametrize("keep", [None, False, True])
def test_a_persons_own_target_keeps_its_reasoning(keep: bool | None):
    chat = Chat(trl_templates.tokenizer_of("qwen3"), keep_reasoning=keep)
    own = {"role": "assistant", "content": "<think>\nadd\n</think>\n\n52", "train": True}
    (example,) = encode(chat, [{"role": "user", "content": "26 + 26?"}, own], 9999)  # type: ignore[misc]
    target = [label for label in example["labels"].tolist() if label != IGNORED]
    assert chat.tokenizer.decode(target) == "<think>\nadd\n</think>\n\n52<|im_end|>"
