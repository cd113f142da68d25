"""`stasc push`: what goes, what the card says, and how the Hub's answers reach a person. `Hub` stands in for
the Hub (no request leaves the tests); unreachable ones are closed ports of this machine."""

import inspect
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness.measured_runs import add_model, make_run
from harness.traces import settings

from stasc_ray import store
from stasc_ray.recipes import RECIPES, recipe_of
from stasc_ray.sharing import hub, public_names, usage
from stasc_ray.tasks import sandbox
from stasc_ray.tasks.prompts import correction_messages

SENT = {
    "README.md", "canary.json", "chat_template.jinja", "config.json", "generation_config.json",
    "model.safetensors", "tokenizer.json", "tokenizer_config.json", "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
}  # fmt: skip


@dataclass
class Hub:
    """Stands in for `HfApi`: repositories by name, each a set of files; keeps what it was asked."""

    repos: dict[str, set[str]] = field(default_factory=dict)
    private: bool = False
    fails: Exception | None = None
    fails_at: str = "repo_exists"
    endpoint: str = "https://hub.example"
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def _called(self, name: str, told: Any = None) -> None:
        self.calls.append((name, told))
        if self.fails and name == self.fails_at:
            raise self.fails

    def repo_exists(self, repo: str) -> bool:
        self._called("repo_exists")
        return repo in self.repos

    def create_repo(self, repo: str, *, private: bool | None) -> None:
        self._called("create_repo", private)
        self.repos[repo] = {".gitattributes"}

    def model_info(self, repo: str) -> Any:
        return SimpleNamespace(private=self.private)

    def list_repo_files(self, repo: str) -> list[str]:
        return sorted(self.repos[repo])

    def create_commit(self, repo: str, operations: list[Any], *, commit_message: str) -> Any:
        self._called("create_commit", {one.path_in_repo: one for one in operations})
        return SimpleNamespace(commit_url=f"{self.endpoint}/{repo}/commit/1")


def test_the_hub_takes_what_its_stand_in_takes():
    from huggingface_hub import HfApi

    for name in ("repo_exists", "create_repo", "model_info", "list_repo_files", "create_commit"):
        ours = inspect.signature(getattr(Hub, name)).parameters
        theirs = inspect.signature(getattr(HfApi, name)).parameters
        kinds = [(theirs[one].kind, ours[one].kind) for one in ours if one in theirs]
        named = [one for one in ours if ours[one].kind is inspect.Parameter.KEYWORD_ONLY]
        assert set(named) <= set(theirs) and all(a == b for a, b in kinds), name


@pytest.fixture
def run(tmp_path: Path) -> store.RunFolder:
    found = make_run(tmp_path / "sums")
    add_model(found, 1, sandbox.model_path())
    return found


def test_weights_configs_and_a_new_card_go_in_one_commit(run: store.RunFolder):
    there = Hub()
    said = hub.push(hub.prepare(run.path, None, "me/sums"), api=there)  # type: ignore[arg-type]
    assert [name for name, _ in there.calls] == ["repo_exists", "create_repo", "create_commit"]
    sent = there.calls[-1][1]
    assert set(sent) == SENT and said == "https://hub.example/me/sums/commit/1 (a new repository)"
    assert there.calls[1][1] is None, "the owner's default"


def test_an_old_repository_gets_a_commit_without_the_weights_of_an_earlier_one(run: store.RunFolder):
    old = {
        ".gitattributes",
        "README.md",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "model.safetensors",
        "notes.txt",
    }
    there = Hub({"me/sums": old})
    said = hub.push(hub.prepare(run.path, "v0001", "me/sums"), api=there)  # type: ignore[arg-type]
    assert "a new commit; the history keeps what was there; took away model-00001" in said
    gone = [name for name, one in there.calls[-1][1].items() if type(one).__name__ == "CommitOperationDelete"]
    assert sorted(gone) == ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]


def test_private_means_private(run: store.RunFolder):
    upload, there = hub.prepare(run.path, None, "me/sums"), Hub()
    hub.push(upload, private=True, api=there)  # type: ignore[arg-type]
    assert there.calls[1] == ("create_repo", True)
    public = Hub({"me/sums": set()})
    with pytest.raises(
        ValueError, match=r"--private: expected a private repository or a new one, found me/sums"
    ):
        hub.push(upload, private=True, api=public)  # type: ignore[arg-type]
    assert [name for name, _ in public.calls] == ["repo_exists"], "nothing was sent"


def test_the_card_has_front_matter_metrics_lineage_and_versions(run: store.RunFolder):
    from huggingface_hub import ModelCard

    card = ModelCard(hub.prepare(run.path, None, "me/sums").card)
    found = {(one.dataset_split, one.metric_name[:5]): one.metric_value for one in card.data.eval_results}
    line = next(one for one in run.metrics() if one["stage"] == "evaluation" and one["iteration"] == 1)
    assert found == {
        (split, f"r(Y{n})"): round(line[f"evaluation/{split}/r_y{n}"], 4)
        for split in ("dev", "test")
        for n in (1, 2)
    }
    assert card.data.library_name == "transformers" and card.data.base_model is None
    low, high = line["evaluation/test/r_y2_low"], line["evaluation/test/r_y2_high"]
    shown = next(text for text in card.text.splitlines() if text.startswith("| test, this version"))
    assert f"{line['evaluation/test/r_y2']:.3f} [{low:.3f}, {high:.3f}]" in shown
    assert "On the same 6 test questions r(Y2) is +0.000 [+0.000, +0.000]" in card.text
    for text in ("| Examples | 4 of 9 attempts |", "| Steps, last loss | 3, 0.5 |", "| train | `sandbox` | - | 9 |",
                 "| transformers | 5.23.0 |", "The licence of the base model applies"):  # fmt: skip
        assert text in card.text


def test_no_path_of_this_machine_goes(tmp_path: Path):
    local = tmp_path / "my-model"
    local.mkdir()
    run = make_run(
        tmp_path / "sums", f"model.path={local}", f"questions.train.source={tmp_path}/data/q.jsonl"
    )
    model = add_model(run, 1, sandbox.model_path())
    config = model / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({"r": 4, "base_model_name_or_path": str(local)}))
    upload = hub.prepare(run.path, None, "me/sums")
    assert "| train | `q.jsonl` |" in upload.card and "`my-model` (a local model" in upload.card
    assert json.loads(upload.files["adapter/adapter_config.json"]) == {
        "r": 4,
        "base_model_name_or_path": "my-model",
    }  # type: ignore[arg-type]
    for name, what in upload.contents().items():
        data = what if isinstance(what, bytes) else what.read_bytes()
        assert str(tmp_path).encode() not in data and str(sandbox.model_path()).encode() not in data, name


def test_names_outside_this_machine():
    assert public_names.of_model("/cache/models--Qwen--Qwen2.5-1.5B/snapshots/abc") == "Qwen/Qwen2.5-1.5B"
    assert public_names.of_model("Qwen/Qwen2.5-1.5B") == "Qwen/Qwen2.5-1.5B"
    assert public_names.of_model("/data/m.gguf") == "m.gguf" and public_names.hub_id("./m") is None
    assert public_names.of_source("https://me:secret@host/a/b.jsonl?token=x") == "https://host/a/b.jsonl"
    assert public_names.of_source("file:///data/q.jsonl") == "q.jsonl"
    assert public_names.of_source("/data/*.parquet") == "*.parquet"
    assert public_names.of_source("rajpurkar/squad") == "rajpurkar/squad"


def test_what_looks_like_a_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Wherever it is pushed from: a relative path may lie elsewhere."""
    monkeypatch.chdir(tmp_path)
    for source in (
        "SECRET/q.jsonl",
        "SECRET/Q.Parquet",
        "SECRET/*",
        "C:\\SECRET\\q.jsonl",
        "SECRET/.q",
        "a/SECRET/q",
    ):
        assert "SECRET" not in public_names.of_source(source), source
    for model in ("SECRET/m.gguf", "SECRET\\m", "u:SECRET@h/m", "~SECRET/m", "SECRET/m x"):
        assert public_names.hub_id(model) is None and "SECRET" not in public_names.of_model(model), model
    assert public_names.hub_id("gpt2") == "gpt2" and public_names.hub_id("mine") is None
    assert public_names.hub_id("models/m") == "models/m", "nobody knows"
    (tmp_path / "models" / "m").mkdir(parents=True)
    assert public_names.hub_id("models/m") is None


CONFIGS = {
    "config.json": {
        "_name_or_path": "/SECRET/m",
        "quantization_config": {"of": ["/SECRET/q", 1]},
        "x": "~/SECRET",
    },
    "generation_config.json": {"_name_or_path": "SECRET", "note": "./SECRET/x"},
    "tokenizer_config.json": {
        "name_or_path": "../SECRET/x",
        "tokenizer_file": "/SECRET/tokenizer.json",
        "vocab_file": "C:\\SECRET\\v",
    },
    "adapter/adapter_config.json": {
        "base_model_name_or_path": "a/b/SECRET",
        "auto_mapping": {"p": "/SECRET"},
    },
}


def test_configs_name_no_path_of_this_machine(run: store.RunFolder):
    for name, values in CONFIGS.items():
        file = run.stage(1, "model") / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    upload = hub.prepare(run.path, None, "me/sums")
    for name in CONFIGS:
        data = upload.files[name]
        assert isinstance(data, bytes) and b"SECRET" not in data, name
    assert json.loads(upload.files["config.json"])["quantization_config"] == {"of": ["sandbox", 1]}  # type: ignore[arg-type]


def test_configs_without_paths_go_as_they_are(run: store.RunFolder):
    file = run.stage(1, "model") / "tokenizer_config.json"
    words = {
        "chat_template": "/{{ x }}/usr", "eos_token": "/usr", "pad_token": "~/", "additional_special_tokens": ["/usr/bin"],
        "added_tokens_decoder": {"1": {"content": "/usr"}}, "a": "/", "b": "</s>", "c": "~", "d": "text/plain",
        "e": "//", "f": "/ {% if x %}a{% endif %}", "g": r"\d+/x", "h": "/usr/bin\nis a folder", "i": "",
        "name_or_path": "Qwen/Qwen2.5-1.5B", "j": "tests", "k": ".*q_proj|a/b", "stop_strings": ["/usr"],
    }  # fmt: skip
    file.write_text(json.dumps({**json.loads(file.read_text()), **words}))
    upload = hub.prepare(run.path, None, "me/sums")
    changed = {name for name, what in upload.files.items() if isinstance(what, bytes)}
    assert changed == {"adapter/adapter_config.json"}, "its base model lies here"


def test_links_out_of_the_run_and_to_nothing_are_refused(run: store.RunFolder, tmp_path: Path):
    (tmp_path / "private.json").write_text("{}")
    (tmp_path / "models--me--m" / "blobs").mkdir(parents=True)
    (tmp_path / "models--me--m" / "blobs" / "abc").write_text("{}")
    link = run.stage(1, "model") / "tokenizer_more.json"
    for target, said in {
        tmp_path / "private.json": "tokenizer_more.json .* which is outside the run",
        tmp_path / "nothing": "tokenizer_more.json .* which is no file",
    }.items():
        link.symlink_to(target)
        with pytest.raises(ValueError, match=said):
            hub.prepare(run.path, None, "me/sums")
        link.unlink()
    link.symlink_to(tmp_path / "models--me--m" / "blobs" / "abc")
    hub.prepare(run.path, None, "me/sums")


def test_a_file_of_the_run_that_lacks_something_is_named(run: store.RunFolder):
    def refused(name: str, change: Any, said: str) -> None:
        file = run.path / name
        before = file.read_text()
        file.write_text(json.dumps({**json.loads(before), **change}))
        with pytest.raises(ValueError, match=rf"{name}.*{said}") as caught:
            hub.prepare(run.path, "v0001", "me/sums")
        assert "\n" not in str(caught.value)
        file.write_text(before)

    refused("iteration_01/model/_COMMITTED.json", {"line": {}}, "expected a line with its time")
    refused("environment.json", {"versions": None}, "expected versions of libraries")
    refused("environment.json", {"versions": {"torch": None}}, "expected versions of libraries")
    manifest = run.path / "versions" / "v0001.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "iteration": "1"}))
    with pytest.raises(ValueError, match=r"versions/v0001.json: expected a manifest .*, found '1'"):
        hub.prepare(run.path, "v0001", "me/sums")


def test_an_empty_version_is_not_latest(run: store.RunFolder):
    with pytest.raises(ValueError, match=r"--version: expected a published version of .*, found ''"):
        hub.prepare(run.path, "", "me/sums")


@pytest.mark.slow  # transformers loads the model
def test_the_program_on_the_card_asks_what_the_run_asks(run: store.RunFolder):
    """It runs as it stands, on the model's own files in place of the repository."""
    card = hub.prepare(run.path, None, "me/sums").card
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert 'name = "me/sums"' in program and 'question = "..."' in program
    program = program.replace('"me/sums"', repr(str(run.stage(1, "model")))).replace(
        '"..."', '"What is 1 + 2 + 3?"'
    )
    watched = "    asked.append(messages)\n    prompt = tokenizer"
    space: dict[str, Any] = {"asked": []}
    exec(program.replace("    prompt = tokenizer", watched), space)
    told = store.read_config(run.path, lambda name: type(settings(f"algorithm.recipe={name}").algorithm))
    wanted = correction_messages({"question": "What is 1 + 2 + 3?"}, space["answer"], told.prompts)
    assert space["asked"][1] == wanted and space["asked"][0] == wanted[:1]
    assert isinstance(space["correction"], str) and space["correction"]


def test_other_recipes_and_documents_shape_the_program():
    told = settings("algorithm.recipe=verdict", "model.chat_template_kwargs={enable_thinking=false}")
    asked = usage.turns(told, 1, {"documents": ["d"], "choices": ["a", "b"]})
    assert [(turn.name, turn.first) for turn in asked] == [
        ("answer", True),
        ("verdict", False),
        ("correction", False),
    ]
    program = usage.code("me/x", told, asked, ("answer", "correction"))
    compile(program, "card", "exec")
    for name in ("question", "document", "choice_a", "choice_b"):
        assert f'\n{name} = "..."\n' in program
    assert "enable_thinking=False" in program and "\ue000" not in program
    assert [turn.name for turn in usage.turns(settings("algorithm.recipe=rft"), 1, {})] == ["answer"]


def card_of(folder: Path, *overrides: str) -> str:
    """The card of a faked run's v0001."""
    run = make_run(folder, *overrides)
    add_model(run, 1, sandbox.model_path())
    return hub.prepare(run.path, "v0001", "me/sums").card


def ran(card: str, said: dict[str, str]) -> tuple[list[str], str]:
    """What the card's program asked, by the last words of each prompt, and what it printed: `said` by those."""
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    head, _, tail = program.partition("\n\n\ndef say")
    asked, printed = [], []

    def say(messages: list[dict[str, str]], sampling: Any) -> str:
        asked.append(messages[-1]["content"])
        return next((text for words, text in said.items() if asked[-1].endswith(words)), f"={len(asked)}")

    assert head.startswith("from transformers")
    body = tail[tail.index("\n\n\n") :]
    exec(body, {"say": say, "first": {}, "later": {}, "print": printed.append})
    return asked, printed[0]


ASKED = {
    "stasc": ["answer", "correction"],
    "rft": ["answer"],
    "verdict": ["answer", "verdict", "correction"],
    "critique": ["answer", "critique", "correction"],
    "cct": ["answer", "correction"],
    "splice": ["answer"],
    "sharpening": ["answer"],
    "preference": ["answer", "correction"],
    "verdict_preference": ["answer", "verdict", "correction"],
    "benchmarks.supervised:GOLD": ["answer"],
    "benchmarks.supervised:WORKED": ["answer"],
}


def test_every_recipe_that_ships_has_a_card_that_is_checked():
    assert set(RECIPES) <= set(ASKED)


@pytest.mark.parametrize("name", ASKED)
def test_the_card_says_what_the_recipe_asks_and_keeps(tmp_path: Path, name: str):
    card, recipe = card_of(tmp_path / "sums", f"algorithm.recipe={name}"), recipe_of(name)
    section = settings(f"algorithm.recipe={name}").algorithm
    asked = ASKED[name]
    corrects = "correction" in asked
    assert f"With the run's own prompts: {', then '.join(asked)}." in card
    assert f"What it learnt from: {recipe.keeps(section)}. It is version v0001" in card
    assert f"with the recipe `{name}` and the objective `{recipe.objective}`." in card
    assert "what its `examples` gives" not in card, "each says it in its own words"
    assert (
        ("corrects its own answers" in card)
        == ("| r(Y2) |" in card)
        == ("corrected answer" in card)
        == corrects
    )
    assert ("No correction is asked for." in card) == (not corrects) == ("self-correction" not in card)
    assert "by their reward" not in card and "2503.08681" not in card
    learnt_from_given = name.startswith("benchmarks")
    assert ("| Train questions were asked for | answer" in card) == (not learnt_from_given)
    program = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    assert re.findall(r"(\w+) = say\(", program) == asked


@pytest.mark.parametrize(
    ("overrides", "words", "asks"),
    [
        (["algorithm.recipe=verdict"], "My answer is right.", "Or: My answer is wrong."),
        (["algorithm.recipe=critique"], "Nothing is wrong.", "Nothing is wrong."),
        (["algorithm.recipe=critique", "algorithm.says_right=All is WELL"], "all is well", "Nothing is wrong."),
        (["evaluation.policy=until_right"], "My answer is right.", "Or: My answer is wrong."),
        (["evaluation.policy=self_refine"], "It is correct.", None),
    ],
)  # fmt: skip
def test_the_program_stops_where_the_measured_chain_does(
    tmp_path: Path, overrides: list[str], words: str, asks: str | None
):
    card = card_of(tmp_path / "sums", *overrides)
    policies = settings(*overrides).prompts.policies
    words, asks = (words, asks) if asks else (policies.is_correct, policies.feedback)
    assert f"whose last words are `{words.casefold()}`" in card
    assert "the program goes on" not in card
    asked, printed = ran(card, {asks: f"So: {words.upper()} \n"})
    assert len(asked) == 2 and printed == "=1"
    asked, printed = ran(card, {asks: f"{words} Or not"})
    assert len(asked) == 3 and printed == "=3"


def test_a_verdict_that_no_words_of_the_config_say_is_told_of(tmp_path: Path):
    card = card_of(tmp_path / "own", "algorithm.recipe=critique", "algorithm.says_right=")
    assert "If a critique is read as saying that the answer is right, the measured chain ends" in card
    assert len(ran(card, {})[0]) == 3


def test_fixed_initialization_is_told(tmp_path: Path):
    card = card_of(tmp_path / "sums", "algorithm.variant=FIE")
    assert "corrects answers to questions; it was measured on the base model's answers" in card
    assert "in the program it corrects its own" in card and "corrects its own answers" not in card
    assert "| First answers by | the base model |" in card
    plain = make_run(tmp_path / "rft", "algorithm.recipe=rft", "algorithm.initial_answers_from=base")
    add_model(plain, 1, sandbox.model_path())
    card = hub.prepare(plain.path, None, "me/sums").card
    line = next(one for one in plain.metrics() if one["stage"] == "evaluation" and one["iteration"] == 1)
    assert line["evaluation/test/r_y1"] != line["evaluation/test/base/r_y1"]
    assert f"| test, this version | 6 | {line['evaluation/test/r_y1']:.3f} [" in card, "not M0's"


@pytest.mark.parametrize(
    ("overrides", "said", "asked"),
    [
        (["policy=self_consistency", "samples=3"], "3 samples of each question, of which the policy chose one", 1),
        (["policy=vote", "samples=3"], "3 samples of each question, of which the policy chose one", 2),
        (["policy=vote_by_verdict", "samples=2"], "2 samples of each question, of which the policy chose", 1),
        (["samples=2"], "2 samples of each question, which count by their mean", 2),
        (["rounds=3"], "up to 3 corrections in a row; the program asks for one", 2),
        (["policy=oracle_stop"], "nothing follows an answer that the reward calls right", 2),
        (["policy=deepening"], "an answer that was cut at its limit is asked on", 1),
        (["policy=direct", "rounds=3"], "No correction is asked for.", 1),
    ],
)  # fmt: skip
def test_what_the_program_leaves_out_is_told(tmp_path: Path, overrides: list[str], said: str, asked: int):
    card = card_of(tmp_path / "sums", *(f"evaluation.{one}" for one in overrides))
    assert (
        said in card
        and f"the policy `{settings(*(f'evaluation.{one}' for one in overrides)).evaluation.policy or 'recipe'}`"
        in card
    )
    prompts, printed = ran(card, {})
    assert len(prompts) == asked and printed == f"={asked}", "an answer, not what judges it"


def test_no_recipe_is_named_where_runs_are_shared():
    for file in Path(hub.__file__).parent.glob("*.py"):
        words = set(re.findall(r'"(\w+)"', file.read_text()))
        assert not words & (set(RECIPES) - {"verdict", "critique"}), file.name  # those are turns as well


def test_what_must_not_go_is_refused(run: store.RunFolder, tmp_path: Path):
    for version, said in {
        "v0000": r"expected a version that was trained, found v0000, .*; choose one by --version: v0001",
        "v0009": r"--version: expected a published version of .* \(v0000, v0001\), found v0009",
    }.items():
        with pytest.raises(ValueError, match=said):
            hub.prepare(run.path, version, "me/sums")
    for repo in ("sums", "a/b/c", "me/..", "me/a b"):
        with pytest.raises(ValueError, match=r"--to: expected OWNER/NAME"):
            hub.prepare(run.path, None, repo)
    with store.open_run(tmp_path / "new", settings()):
        pass
    with pytest.raises(ValueError, match=r"\(none yet\), found none"):
        hub.prepare(tmp_path / "new", None, "me/sums")


def test_a_model_folder_that_is_not_what_was_measured_is_refused(run: store.RunFolder):
    model = run.stage(1, "model")
    weights, mark = model / "model.safetensors", model / store.COMMIT_MARK
    later = mark.stat().st_mtime + 3600
    line = json.loads(mark.read_text())
    mark.write_text(json.dumps({**line, "line": {**line["line"], "time": time.time()}}))
    os.utime(weights, (later, later))
    with pytest.raises(ValueError, match=r"found model.safetensors in .* changed since it was committed"):
        hub.prepare(run.path, None, "me/sums")
    os.utime(weights)
    hub.prepare(run.path, None, "me/sums")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match="expected a whole safetensors file"):
        hub.prepare(run.path, None, "me/sums")
    weights.write_bytes(whole)
    mark.unlink()
    with pytest.raises(FileNotFoundError, match="expected a finished model"):
        hub.prepare(run.path, None, "me/sums")


def answer_of(status: int) -> Exception:
    """What huggingface_hub raises for an HTTP status."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    response = httpx2.Response(status, request=httpx2.Request("POST", "https://hub.example/api"))
    return HfHubHTTPError(f"{status}\nno", response=response, server_message="no")


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, ValueError, r"expected a token that https://hub.example knows, found that it refuses this one"),
        (403, ValueError, r"expected a token that may write to me/sums, found that it may not \(403: no\)"),
        (500, ConnectionError, r"found its error 500: no"),
    ],
)
def test_what_the_hub_refuses_is_one_line(run: store.RunFolder, status: int, kind: type, said: str):
    upload = hub.prepare(run.path, None, "me/sums")
    with pytest.raises(kind, match=said) as caught:
        hub.push(upload, api=Hub(fails=answer_of(status), fails_at="create_repo"))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_repository_that_stays_empty_is_told_of(run: store.RunFolder):
    there = Hub(fails=answer_of(500), fails_at="create_commit")
    with pytest.raises(ConnectionError) as caught:
        hub.push(hub.prepare(run.path, None, "me/sums"), api=there)  # type: ignore[arg-type]
    assert caught.value.__notes__ == ["me/sums was made and is empty; the same command fills it"]


def pushed(
    run: store.RunFolder, home: Path, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command, with no token of a person and a Hub that nobody reaches."""
    command = [sys.executable, "-m", "stasc_ray.cli", "push", str(run.path), "--to", "me/sums", *words]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=kept)


def test_a_dry_run_shows_all_and_needs_nobody(run: store.RunFolder, tmp_path: Path):
    done = pushed(run, tmp_path / "home", "--dry-run")
    assert done.returncode == 0 and done.stderr == ""
    listed = done.stdout.splitlines()[-len(SENT) - 3 :]
    assert listed[0] == "to me/sums, version v0001 of sums:" and "in 10 files" in listed[-2]
    assert {line.split()[-1] for line in listed[1:-2]} == SENT
    assert listed[-1] == "dry run: nothing was sent" and "# sums\n" in done.stdout


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {},
            "error: stasc push: expected a token of the Hub, found none; `hf auth login` keeps one, or set HF_TOKEN\n",
        ),
        ({"HF_TOKEN": "hf_x"}, "error: stasc push: expected to reach the Hub at http://127.0.0.1:9, found "),
        (
            {"HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "1"},
            "error: stasc push: expected to reach http://127.0.0.1:9, found offline mode",
        ),
    ],
)
def test_without_a_token_or_the_hub_it_is_one_line(
    run: store.RunFolder, tmp_path: Path, environment: dict[str, str], said: str
):
    done = pushed(run, tmp_path / "home", **environment)
    assert done.returncode == 1 and done.stderr.startswith(said) and done.stderr.count("\n") == 1
