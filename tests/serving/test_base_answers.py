"""M0 writes the initial answers and the trained version corrects them, as F variants are trained."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from harness import scripted_api, scripted_loader, served, served_runs
from harness.scripted_api import Api, Loaded, ScriptedEngine
from harness.scripted_loader import ScriptedLoader, answers, following, publish, until

from benchmarks.ray_cluster import free_port
from stasc_ray import config, store
from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.generation.samples import Sample
from stasc_ray.recipes import section_of
from stasc_ray.serving import app, decide, placement

FIXED = "algorithm.initial_answers_from=base"


def settings(*overrides: str) -> config.Config:
    return config.load_config(None, list(overrides), section_of)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], False),
        ([FIXED], True),
        (["algorithm.variant=FIE"], True),
        ([FIXED, "serve.initial_answers_from=current"], False),
        (["serve.initial_answers_from=base"], True),
        ([FIXED, "algorithm.recipe=rft"], False),  # what it was trained for is the answer itself
        ([FIXED, "algorithm.recipe=verdict"], True),
    ],
)
def test_m0_writes_the_initial_answers_as_trained_or_as_the_config_says(overrides, expected) -> None:
    assert placement.base_answers(settings(*overrides)) == expected


def test_a_recipe_that_corrects_nothing_leaves_m0_nothing_to_answer() -> None:
    with pytest.raises(ValueError, match=r"serve.initial_answers_from: expected current, .*'rft'"):
        placement.base_answers(settings("algorithm.recipe=rft", "serve.initial_answers_from=base"))


class Named(ScriptedEngine):
    """Says its name, and how many texts of others it was shown."""

    def __init__(self, name: str, deaths: int = 0) -> None:
        super().__init__(deaths)
        self.name = name

    async def generate(self, token_ids, request, on_text=None) -> Sample:
        found = await super().generate(token_ids, request, None)
        return Sample(f"{found.text} by {self.name}", found.token_ids, "stop")


@pytest.fixture
def api(tmp_path: Path) -> Api:
    """v0001 answers, and v0000 is there for it."""
    api = Api(tmp_path, FIXED, engine=Named("v1"))
    served_runs.publish(api.run, None)
    api.versions.published.look(())
    base, trained = api.run.versions()
    files = api.versions.published.state_of(trained)
    api.versions.active = Loaded(trained, api.engine, "scripted", files=files)  # type: ignore[arg-type]
    api.versions.warm = [Loaded(base, Named("v0"), "scripted")]  # type: ignore[arg-type]
    return api


def test_the_reply_says_who_wrote_which_turn(api) -> None:
    body = api.call("POST", "/v1/correct", json={"question": "Why?", "rounds": 2}).json()
    assert body["initial_answer"] == "first by v0"
    assert [text[-5:] for text in body["corrections"]] == ["by v1", "by v1"]
    assert (body["initial_version"], body["model_version"]) == ("v0000", "v0001")

    body = api.call("POST", "/v1/correct", json={"question": "Why?", "initial_answer": "no"}).json()
    assert body["corrections"] == ["first by v1"] and body["initial_version"] is None

    body = api.call("POST", "/v1/correct", json={"question": "Why?", "rounds": 0}).json()
    assert (body["answer"], body["initial_version"]) == ("first by v0", "v0000")

    body = api.call("POST", "/v1/correct", json={"question": "Why?", "version": "v0000"}).json()
    assert (body["answer"], body["initial_version"]) == ("second by v0", "v0000")

    chat = {"model": "latest", "messages": [{"role": "user", "content": "Why?"}]}
    body = api.call("POST", "/v1/chat/completions", json=chat).json()
    assert body["choices"][0]["message"]["content"] == "second by v1" and body["model"] == "v0001"
    assert (body["stasc"]["initial_answer"], body["stasc"]["initial_version"]) == ("first by v0", "v0000")


def test_the_run_says_who_writes_and_what_corrections_of_m0s_answers_scored(api) -> None:
    for manifest, metrics in zip(api.run.versions(), ({"r_y1": 0.2}, {"base/r_y1": 0.2}), strict=True):
        manifest["metrics"] = {f"evaluation/dev/{name}": value for name, value in metrics.items()}
        manifest["metrics"] |= {"evaluation/dev/r_y2": 0.3, "evaluation/dev/base/r_y2": 0.4}
        file = api.run.path / "versions" / f"{manifest['version']}.json"
        store.write_atomically(file, json.dumps(manifest))
    api.versions.published.look(())
    body = api.call("GET", "/v1/run").json()
    assert body["initial_answers_from"] == "base"
    assert [version["dev"] for version in body["versions"]] == [
        {"r_y1": 0.2, "r_y2": 0.3},
        {"r_y1": 0.2, "r_y2": 0.4},
    ]


def test_a_request_on_which_m0s_engine_dies_is_answered_by_the_next_and_the_version_goes_on(api) -> None:
    dying: Any = api.versions.warm[0].engine
    dying.deaths = 1
    again = scripted_api.Again(Named("v0 again"))
    api.versions._loader = again  # type: ignore[assignment]
    body = api.call("POST", "/v1/correct", json={"question": "Why?"}).json()
    assert (body["initial_answer"], body["answer"]) == ("first by v0 again", "second by v1")
    assert again.engine_starts == 1 and api.versions.active.engine is api.engine


@pytest.fixture
def run(tmp_path: Path) -> store.RunFolder:
    return scripted_loader.two_versions(tmp_path / "run", FIXED)


def test_m0_is_loaded_before_a_version_that_corrects_it_and_stays(run) -> None:
    loader = ScriptedLoader()
    versions = scripted_loader.versions(run, loader)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        for number in range(2, 5):
            await until(answers(versions, publish(run, number)))
            async with versions.hold(None) as held:
                assert versions.writes_first(held).version == "v0000"
        await until(lambda: [one.version for one in versions.loaded] == ["v0004", "v0000"])
        assert loader.engine_starts == 5 and len(loader.up) == 2 and versions.reasons() == {}
        await versions.pin("v0000")
        await until(answers(versions, "v0000"))
        await until(lambda: len(loader.up) == 1)
        assert loader.engine_starts == 5, "it was there"
        await versions.pin(None)
        await until(answers(versions, "v0004"))
        assert loader.engine_starts == 6 and len(loader.up) == 2

    following(versions, scenario)
    assert not loader.up


def test_where_m0s_engine_dies_questions_wait_for_it_and_the_version_stays_loaded(run) -> None:
    loads = asyncio.Event()
    loads.set()
    loader = ScriptedLoader(lambda version: loads.wait() if version == "v0000" else None)
    versions = scripted_loader.versions(run, loader)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        (trained, base), _ = versions.loaded, loads.clear()
        base.engine.dead = EngineDiedError("killed")  # type: ignore[attr-defined]
        await until(lambda: versions.active is None)
        assert "v0001" in str(versions.why_not_ready())

        async def ask() -> str:
            async with versions.hold(None) as held:
                assert versions.writes_first(held) not in (base, held)
                return held.version

        asked = asyncio.create_task(ask())
        await asyncio.sleep(0.1)
        assert not asked.done()
        loads.set()
        assert await asked == "v0001" and versions.active is trained
        assert loader.engine_starts == 3

    following(versions, scenario)


def test_a_version_without_m0_to_correct_is_refused_until_it_can_be_loaded(run, monkeypatch) -> None:
    monkeypatch.setattr(decide, "RETRY_S", 0.02)
    faults: list[Exception] = [ValueError("another tokenizer")]
    loader = ScriptedLoader(lambda version: faults[0] if faults and version == "v0000" else None)
    versions = scripted_loader.versions(run, loader)
    file = run.path / "versions" / "v0000.json"

    async def scenario() -> None:
        await until(lambda: "answers of M0, which cannot be served: another" in told())
        file.rename(hidden := file.with_suffix(".hidden"))
        faults.clear()
        await until(lambda: "answers of M0, which has no manifest" in told())
        assert versions.active is None
        hidden.rename(file)
        await until(answers(versions, "v0001"))

    def told() -> str:
        return versions.reasons().get("v0001", "")

    following(versions, scenario)


def test_in_place_m0s_weights_are_never_exchanged(run) -> None:
    loader = ScriptedLoader()
    versions = scripted_loader.versions(run, loader, "serve.swap=in_place")

    async def scenario() -> None:
        await versions.pin("v0000")
        await until(answers(versions, "v0000"))
        base = versions.active
        await versions.pin(None)
        await until(answers(versions, "v0001"))
        assert loader.engine_starts == 2 and versions.warm == [base]
        await until(answers(versions, publish(run, 2)))
        assert loader.engine_starts == 2, "those of the version before are"
        assert versions.warm == [base] and len(loader.up) == 2

    following(versions, scenario)


def test_in_place_a_version_that_waits_for_m0_leaves_its_room_to_the_wanted_one(run) -> None:
    """There are two engines' GPUs: an engine that finds none is not up."""
    loads = asyncio.Event()
    loads.set()

    async def load(version: str) -> None:
        await loads.wait() if version == "v0000" else None
        while len(loader.up) > 2:
            await asyncio.sleep(0.01)

    loader = ScriptedLoader(load)
    versions = scripted_loader.versions(run, loader, "serve.swap=in_place")

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        (_, base), _ = versions.loaded, loads.clear()
        base.engine.dead = EngineDiedError("killed")  # type: ignore[attr-defined]
        await until(lambda: versions.active is None)
        await versions.pin(publish(run, 2))
        await until(lambda: versions.loading == "v0002")
        loads.set()
        await until(answers(versions, "v0002"))
        assert len(loader.up) == 2 and versions.reasons() == {}

    following(versions, scenario)


def test_m0_that_starts_again_while_a_version_is_prepared_is_started_once(run) -> None:
    loads = {version: asyncio.Event() for version in ("v0000", "v0002")}
    loads["v0000"].set()
    loader = ScriptedLoader(lambda version: loads[version].wait() if version in loads else None)
    versions = scripted_loader.versions(run, loader)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        (_, base), _ = versions.loaded, loads["v0000"].clear()
        publish(run, 2)
        await until(lambda: len(loader.up) == 3)
        base.engine.dead = EngineDiedError("killed")  # type: ignore[attr-defined]
        await until(lambda: versions.active is None and loader.engine_starts == 4)
        loads["v0002"].set()
        await asyncio.sleep(0.1)
        assert versions.active is None, "it corrects M0's answers"
        loads["v0000"].set()
        await until(answers(versions, "v0002"))
        assert loader.engine_starts == 4

    following(versions, scenario)


@pytest.mark.slow
@pytest.mark.served
@pytest.mark.parametrize("method", ["lora", "full"])
def test_on_real_engines_m0_answers_and_the_version_corrects(tmp_path, method) -> None:
    """Adapters need one engine, full weights two; transformers says the same."""
    if method == "lora":
        model = served_runs.make_lora_model(tmp_path / "a", noise=0.05, seed=1)
    else:
        model = served_runs.make_model(tmp_path / "a", noise=0.05, seed=1)
    overrides = [FIXED, f"finetune.method={method}", "finetune.lora.rank=4"]
    run = served_runs.make_run(tmp_path / "run", *overrides)
    served_runs.publish(run, None)
    version = served_runs.publish(run, model)
    values, port = store.read_config(run.path, section_of), free_port()
    with (
        served.local_ray(),
        app.serving(run.path, values, "127.0.0.1", port, None, loopback_only=True),
    ):
        endpoint = served.Served(run, tmp_path, f"http://127.0.0.1:{port}", {"plain": "none"})
        health = endpoint.wait(lambda found: found["active"] == version)
        assert len(health["engine_pids"]) == health["engine_starts"] == (1 if method == "lora" else 2)
        assert health["warm"] == ["v0000"]
        different = 0
        for question in served.QUESTIONS:
            body = endpoint.correct(question).json()
            initial, _ = served.greedy(run, "v0000", question)
            assert (body["initial_answer"], body["initial_version"]) == (initial, "v0000")
            assert body["answer"] == served.greedy_correction(run, version, question, initial)
            different += served.greedy(run, version, question)[0] != initial
        assert different, "or nobody could tell who wrote the initial answers"
