"""Where the answer begins: what is graded must never be what was only weighed."""

import time

import pytest

from stasc_ray.tasks.reasoning import BLOCKS, answer_start, opening

CHANNELS = "<|channel|>analysis<|message|>51? 52?<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 52.", "It is 52."),
        ("", ""),
        ("<think>\n51? 52?\n</think>\n\nIt is 52.", "\n\nIt is 52."),
        ("51? 52?\n</think>\nIt is 52.", "\nIt is 52."),  # the prompt opened it
        ("<think>a</think>It is 51.<think>b</think>It is 52.", "It is 52."),
        ("<think>\n51? 52?", ""),
        ("<think>a</think>It is 51.\n<think>wait", ""),
        ("[THINK]51?[/THINK]It is 52.", "It is 52."),
        ("[THINK]51?", ""),
        ("<|channel>thought\n51?\n<channel|>It is 52.", "It is 52."),
        ("<seed:think>51?</seed:think>It is 52.", "It is 52."),
        ("<thought>51?</thought>It is 52.", "It is 52."),
        (CHANNELS + "It is 52.", "It is 52."),
        ("<|channel|>analysis<|message|>51? 52?", ""),
        ("<|channel|>final<|message|>It is 51.<|end|><|start|>assistant<|channel|>analysis<|message|>hm", ""),
        (
            " to=self<|message|>51?<|eom|><|start|>assistant to=user<|message|>It is 52.",
            "It is 52.",
        ),
        (" to=self<|message|>51?", ""),
        ("a < b and b > c", "a < b and b > c"),
        ("London. <think>It may be Paris", ""),
        ("**<think>** Paris", ""),
        ("<think>a</think>London<think>It may be Paris, London or Rome.", ""),
    ],
)
def test_the_answer_follows_the_last_end_of_thinking(text: str, answer: str):
    assert text[answer_start(text) :] == answer


@pytest.mark.parametrize(("begin", "end"), BLOCKS)
def test_every_mark_opens_and_closes(begin: str, end: str):
    text = f"{begin}It may be Paris, London or Rome.{end}London"
    assert text[answer_start(text) :] == "London"
    assert answer_start(text.partition(end)[0]) == len(text.partition(end)[0])


@pytest.mark.parametrize("text", ["\n" * 100_000, " to=a" * 40_000, "<think>" * 20_000, "<" * 100_000])
def test_long_texts_take_no_time(text: str):
    started = time.perf_counter()
    answer_start(text)
    assert time.perf_counter() - started < 1


def test_a_text_that_never_ends_the_reasoning_that_its_prompt_opened_has_no_answer():
    assert answer_start("51? 52?", opened=True) == len("51? 52?")
    assert answer_start("51?</think>52", opened=True) == len("51?</think>")


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>assistant\n", ""),
        ("<|Assistant|><think>", "<think>"),
    ],
)
def test_what_opens_the_reasoning_at_the_end_of_a_prompt(prompt: str, opened: str):
    assert opening(prompt) == opened
