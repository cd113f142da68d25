"""Previous versions stay loaded (`serve.keep_warm`), on scripted engines: a way back starts no engine."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import scripted_api, scripted_loader, served_runs
from harness.scripted_loader import ScriptedLoader, answers, following, publish, until

from stasc_ray import store
from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.serving.follow import Versions


@pytest.fixture
def run(tmp_path: Path) -> store.RunFolder:
    found = served_runs.make_run(tmp_path / "run", "serve.poll_s=0.02")
    for number in range(2):
        publish(found, number)
    return found


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
            assert warm(versions) == [left] and versions.loading is None
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
        assert loader.engine_starts == 3 and "v0001" not in versions.reasons()
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
