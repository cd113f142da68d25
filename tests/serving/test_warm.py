"""Previous versions stay loaded (`serve.keep_warm`): a way back starts no engine."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from harness import scripted_api, scripted_loader, served, served_runs
from harness.scripted_loader import ScriptedLoader, answers, following, publish, until

from stasc_ray import config, store
from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.generation.samples import Request
from stasc_ray.recipes import section_of
from stasc_ray.serving import app, coordinator
from stasc_ray.serving.follow import Versions
from stasc_ray.tasks import prompts

GREEDY = Request(config.Sampling(temperature=0.0, max_tokens=32), 1, 0)


@pytest.fixture
def run(tmp_path: Path) -> store.RunFolder:
    return scripted_loader.two_versions(tmp_path / "run")


def warm(versions: Versions) -> list[str]:
    return [one.version for one in versions.warm]


async def go_to(versions: Versions, version: str) -> None:
    await versions.pin(version)
    await until(answers(versions, version))


def test_a_way_back_to_a_warm_version_starts_no_engine(run) -> None:
    loader = ScriptedLoader()
    versions = scripted_loader.versions(run, loader, "serve.keep_warm=1")

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        assert warm(versions) == []
        publish(run, 2)
        await until(answers(versions, "v0002"))
        assert warm(versions) == ["v0001"] and len(loader.up) == 2
        async with versions.hold("v0001") as held:
            assert held.version == "v0001", "it answers who asks for it"

        loader.script = lambda version: asyncio.sleep(1e6)  # no engine comes up any more
        for version, left in (("v0001", "v0002"), ("v0002", "v0001"), ("v0001", "v0002")):
            await go_to(versions, version)
            assert warm(versions) == [left]
            await until(lambda: versions.loading is None)
        assert loader.engine_starts == 2 and len(loader.up) == 2

        loader.script = lambda version: None
        await go_to(versions, "v0000")
        assert warm(versions) == ["v0001"], "the one that answered longest ago goes"
        await until(lambda: len(loader.up) == 2)

    following(versions, scenario)
    assert not loader.up


def test_without_keep_warm_a_previous_version_goes(run) -> None:
    loader = ScriptedLoader()
    versions = scripted_loader.versions(run, loader)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        await go_to(versions, "v0000")
        await until(lambda: len(loader.up) == 1)
        assert warm(versions) == [] and versions.retiring == []

    following(versions, scenario)


def test_a_warm_version_whose_files_changed_is_loaded_again_and_one_whose_files_are_gone_is_not(run) -> None:
    loader = ScriptedLoader()
    versions = scripted_loader.versions(run, loader, "serve.keep_warm=2")
    known: list[list[str]] = []
    prepare = loader.prepare

    async def noting(manifest: Any, loaded: Any) -> Any:
        known.append([one.version for one in loaded])
        return await prepare(manifest, loaded)

    loader.prepare = noting  # type: ignore[method-assign]

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        await go_to(versions, "v0000")
        (run.path / "model1" / "weights").write_text("other weights")
        await until(lambda: "v0001" in versions.reasons())
        await go_to(versions, "v0001")
        await until(lambda: versions.reasons() == {})
        assert loader.engine_starts == 3
        assert known[-1] == ["v0000"], "not on the engine that holds the old weights"

        await go_to(versions, "v0000")
        shutil.rmtree(run.path / "model1")
        await go_to(versions, "v0001")
        assert loader.engine_starts == 3 and "from memory" in versions.reasons()["v0001"]

    following(versions, scenario)


def test_a_warm_version_whose_engine_died_is_loaded_again_when_it_is_wanted(run) -> None:
    loader = ScriptedLoader()
    versions = scripted_loader.versions(run, loader, "serve.keep_warm=1")

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        await go_to(versions, "v0000")
        engine: Any = versions.warm[0].engine
        engine.dead = EngineDiedError("killed")
        await until(lambda: warm(versions) == [])
        await asyncio.sleep(0.1)
        assert loader.engine_starts == 2 and answers(versions, "v0000")(), "nobody asked for it"
        await go_to(versions, "v0001")
        assert loader.engine_starts == 3

    following(versions, scenario)


def test_health_and_models_say_what_is_warm(tmp_path) -> None:
    api = scripted_api.Api(tmp_path)
    served_runs.publish(api.run, None)
    api.versions.published.look(())
    engine: Any = scripted_api.ScriptedEngine()
    api.versions.warm.append(scripted_api.Loaded(api.run.versions()[1], engine, "scripted"))
    health = api.call("GET", "/healthz").json()
    assert (health["active"], health["loaded"], health["warm"]) == ("v0000", ["v0000", "v0001"], ["v0001"])
    cards = {card["id"]: card["stasc"] for card in api.call("GET", "/v1/models").json()["data"]}
    assert cards["v0001"]["loaded"] and not cards["v0001"]["active"]
    asked = {"question": "Why?", "version": "v0001"}
    assert api.call("POST", "/v1/correct", json=asked).json()["model_version"] == "v0001"


@pytest.mark.slow
@pytest.mark.served
@pytest.mark.parametrize(("method", "engines"), [("lora", 1), ("full", 2)])
def test_on_real_engines_a_way_back_starts_none_and_the_answers_are_the_versions(
    tmp_path, method, engines
) -> None:
    overrides = ["serve.keep_warm=1", "serve.poll_s=0.1", f"finetune.method={method}", "finetune.lora.rank=4"]
    run = served_runs.make_run(tmp_path / "run", *overrides)
    served_runs.publish(run, None)
    make = served_runs.make_lora_model if method == "lora" else served_runs.make_model
    for seed in (1, 2):
        served_runs.publish(run, make(tmp_path / str(seed), noise=0.05, seed=seed))
    settings = store.read_config(run.path, section_of)
    spec = app.engine_spec(app.Endpoint(str(run.path), settings, on_cuda=False))
    both = ("v0001", "v0002")
    told = {one: [served.greedy(run, version, one)[0] for version in both] for one in served.QUESTIONS}
    question = next(one for one, texts in told.items() if len(set(texts)) == 2)
    texts = dict(zip(both, told[question], strict=True))

    async def answer(versions: Versions) -> str:
        messages = prompts.initial_messages({"question": question}, settings.prompts)
        async with versions.hold(None) as held:
            token_ids = held.engine.chat.render(messages, add_generation_prompt=True)
            return (await held.engine.generate(token_ids, GREEDY)).text

    with served.local_ray():
        versions = Versions(run, settings, spec, coordinator.alone())

        async def scenario() -> None:
            await until(lambda: versions.active, seconds=served.PATIENCE_S)
            await versions.pin("v0001")
            await until(answers(versions, "v0001"), seconds=served.PATIENCE_S)
            for version in ("v0002", "v0001", "v0002"):
                begun = time.monotonic()
                await go_to(versions, version)
                print(f"{method}: back to {version} in {time.monotonic() - begun:.2f} s")
                assert await answer(versions) == texts[version]
            assert versions.engine_starts == engines

        following(versions, scenario)
