"""A recipe written outside the package (harness/critique.py): one file, named by a dotted path."""

import asyncio
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.chat_templates import FAMILIES, tokenizer_of
from harness.critique import CRITIQUE
from harness.served_run import ENVIRONMENT, STASC, served
from harness.traces import QUESTION, ScriptedAsk, plan, settings

from stasc_ray import config, store
from stasc_ray.learning.encoding import IGNORED, encode
from stasc_ray.recipes import recipe_of, section_of
from stasc_ray.recipes.answering import as_trained
from stasc_ray.recipes.recipe import Plan, written
from stasc_ray.recipes.trace import Text, finals, grade, read_texts, write_texts
from stasc_ray.tasks import chat, sandbox
from stasc_ray.tasks.prompts import correction_messages

NAME = "harness.critique:CRITIQUE"


def critique_plan(**section: Any) -> Plan:
    return plan({"recipe": NAME, **section})


def traced(of: Plan, *texts: str) -> list[Text]:
    """A graded trace; a text with "Danube" is right."""
    ask = ScriptedAsk(*texts)
    asyncio.run(CRITIQUE.turns(QUESTION, ask, of, None))
    grade(
        ask.texts,
        CRITIQUE.answers,
        lambda text: (float("Danube" in text), None),
        (),
        CRITIQUE.says_right,
        1.0,
    )
    return ask.texts


def test_the_config_reads_the_recipes_own_words():
    assert recipe_of(NAME) is CRITIQUE
    found = settings(f"algorithm.recipe={NAME}", "algorithm.keep=not_worse").algorithm
    assert (found.recipe, found.n_corrections, found.keep) == (NAME, 2, "not_worse")  # type: ignore[attr-defined]
    stored = json.loads(config.to_json(settings(algorithm={"recipe": NAME, "n_corrections": 3})))
    assert config.validate(stored, section_of).algorithm.n_corrections == 3
    with pytest.raises(ValueError, match=r"algorithm.kep: no such field; did you mean 'keep'"):
        settings(f"algorithm.recipe={NAME}", "algorithm.kep=not_worse")
    with pytest.raises(ValueError, match=r"can't import 'harness\.critic:CRITIQUE'"):
        settings("algorithm.recipe=harness.critic:CRITIQUE")


def test_the_correction_is_asked_in_sight_of_the_critique():
    of, ask = critique_plan(n_corrections=2), ScriptedAsk("Rhine", "too short", "Danube", "Elbe")
    asyncio.run(CRITIQUE.turns(QUESTION, ask, of, None))
    assert [(turn, n) for turn, _, n in ask.asked] == [("answer", 1), ("critique", 1), ("correction", 2)]
    assert [message["content"] for message in ask.asked[2][1]][-4:] == [
        "Rhine",
        "What is wrong with your answer?",
        "too short",
        correction_messages(QUESTION, "Rhine", of.prompts)[-1]["content"],
    ]
    assert [text.turn for text in ask.texts[2].lineage] == ["answer", "critique", "correction"]


def test_the_trace_keeps_its_turns_on_disk_and_ends_in_the_correction():
    texts = read_texts(
        {"texts": write_texts(traced(critique_plan(n_corrections=1), "Rhine", "no", "Danube"))}
    )
    assert [text.turn for text in texts] == ["answer", "critique", "correction"]
    assert [text.reward for text in texts] == [0.0, None, 1.0], "a critique is no answer"
    assert list(finals(texts, texts[0], CRITIQUE.answers)) == [texts[2]]


def test_rounds_criticise_the_correction_before():
    ask = ScriptedAsk("Rhine", "no", "Elbe", "still no", "Danube")
    asyncio.run(as_trained(CRITIQUE, QUESTION, ask, critique_plan(n_corrections=1, n_initial=1), None))
    assert len(ask.texts) == 3
    ask = ScriptedAsk("Rhine", "no", "Elbe", "still no", "Danube")
    of = Plan(critique_plan().prompts, critique_plan().section, n_initial=1, n_corrections=1, rounds=2)
    asyncio.run(as_trained(CRITIQUE, QUESTION, ask, of, None))
    assert [text.text for text in ask.texts[-1].lineage] == ["Rhine", "no", "Elbe", "still no", "Danube"]


def test_critiques_that_helped_are_learnt_with_their_corrections():
    of = critique_plan(n_corrections=3)
    texts = traced(of, "Rhine", "no", "Elbe", "Danube", "the Danube")
    found = CRITIQUE.examples(QUESTION, texts, of, 0)
    assert [(one.id, one.kind) for one in found] == [("q1/0/1", "i->c"), ("q1/0/2", "i->c")]
    assert [one["pieces"][0]["text"] for one in found[0].messages if one.get("pieces")] == ["no", "Danube"]
    assert CRITIQUE.examples(QUESTION, texts, critique_plan(keep="not_worse"), 0)[0].kind == "i->i"


@pytest.mark.parametrize("name", FAMILIES)
def test_critique_and_correction_are_learnt_in_one_sequence(name: str):
    tokenizer, of = tokenizer_of(name), critique_plan(n_corrections=1)
    texts = traced(of, "Rhine", "It is the other one.", "Danube")
    (example,) = CRITIQUE.examples(QUESTION, texts, of, 0)
    at = [place for place, message in enumerate(example.messages) if message.get("pieces")]
    for place, text in zip(at, texts[1:], strict=True):  # the ids that a model gives
        plain = [{"role": one["role"], "content": chat.content(one)} for one in example.messages[:place]]
        (target,) = encode(chat.Chat(tokenizer), [*plain, written(text.text)], 4096)
        text.token_ids = target["labels"][target["labels"] != IGNORED].tolist()  # type: ignore[index]
    (example,) = CRITIQUE.examples(QUESTION, texts, of, 0)
    (sequence,) = encode(chat.Chat(tokenizer), example.messages, 4096)
    trained = sequence["labels"][sequence["labels"] != IGNORED].tolist()  # type: ignore[index]
    assert trained == [*texts[1].token_ids, *texts[2].token_ids]


# --- the whole of it
# ------------------------------------------------------------------------------------------------

RUN = """
name = "critique"
[model]
path = "sandbox"
[questions]
train = { source = "sandbox", limit = 64 }
dev = { source = "sandbox", limit = 16 }
test = { source = "sandbox", limit = 16 }
[prompts]
preset = "sandbox"
[reward]
name = "exact_match"
scope = "after_marker"
[engine]
max_model_len_tokens = 512
kv_cache_gb = 0.25
batch_size = 32
[sampling]
initial = { temperature = 0.7, top_p = 1.0, max_tokens = 64 }
correction = { temperature = 0.7, top_p = 1.0, max_tokens = 64 }
[algorithm]
recipe = "critique:CRITIQUE"
iterations = 1
n_corrections = 4
keep = "not_worse"
critique_prompt = "Correct it if it is wrong." # the tiny model knows no other
[finetune]
learning_rate = 5e-5
batch_size = 32
max_length_tokens = 512
[publish]
when = "always"
"""


class GreedyAsk:
    """An `Ask` of a model folder by transformers, which knows nothing of the engine."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.texts: list[Text] = []
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    async def __call__(
        self,
        turn: str,
        messages: Sequence[chat.Message],
        *,
        n: int = 1,
        parent: Text | None = None,
        logprob: bool = False,
        budget: float = 1.0,
    ) -> list[Text]:
        import torch

        ids = torch.tensor([chat.Chat(self.tokenizer).render(messages, add_generation_prompt=True)])
        mask = torch.ones_like(ids)
        found = self.model.generate(ids, attention_mask=mask, max_new_tokens=64, do_sample=False)
        text = self.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        self.texts.append(Text(turn, text, 0, parent))
        return self.texts[-1:]


@pytest.mark.slow
def test_an_own_recipe_runs_and_is_served(tmp_path: Path):
    """By `stasc run` and `stasc serve`, as a user would, with the recipe's folder on the Python path."""
    (tmp_path / "critique.toml").write_text(RUN, encoding="utf-8")
    folder = tmp_path / "run"
    done = subprocess.run(
        [*STASC, "run", str(tmp_path / "critique.toml"), "--run-dir", str(folder)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "critique:CRITIQUE" in report and "Critique: " in report
    run = store.RunFolder(folder)
    lines = {(line["stage"], line["iteration"]): line for line in run.metrics()}
    assert lines["examples", 1]["examples/kept"] > 0 and lines["rollouts", 0]["rollouts/critique_tokens"] > 0
    question = sandbox.questions("dev", 1, seed=0)[0]
    with served(folder) as url:
        asked = {"question": question["question"], "temperature": 0, "max_tokens": 64}
        reply = httpx.post(f"{url}/v1/correct", json=asked, timeout=120).json()
    manifest = run.versions()[-1]
    assert (reply["model_version"], manifest["recipe"]) == (manifest["version"], "critique:CRITIQUE")
    ask = GreedyAsk(folder / manifest["model"])
    texts = config.Prompts(preset="sandbox")
    section = CRITIQUE.section(critique_prompt="Correct it if it is wrong.")  # type: ignore[call-arg]
    of = Plan(texts, section, n_initial=1, n_corrections=1)
    asyncio.run(CRITIQUE.turns(question, ask, of, None))
    assert [(turn["turn"], turn["text"]) for turn in reply["turns"]] == [
        (text.turn, text.text) for text in ask.texts
    ]
    assert reply["answer"] == ask.texts[-1].text
