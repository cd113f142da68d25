"""The run's engines: they outlive a pass, take new weights over in place, and are replaced where that fails."""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from harness import served_runs
from ray.exceptions import RayError

from stasc_ray import config
from stasc_ray.generation import canary, pool, rollouts, run_engines, unit_files
from stasc_ray.generation.engines import EngineActor
from stasc_ray.generation.pool import MAX_RESTARTS
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.recipes import section_of
from stasc_ray.runtime import ray_session
from stasc_ray.tasks import sandbox

ENGINE = {"max_model_len_tokens": 256, "kv_cache_gb": 0.25, "batch_size": 4, "device": "cpu", "actors": 2}
WARM = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 24}


# --- the canary, without an engine


def expecting(*logprobs: float) -> canary.Canary:
    return {"dtype": "float32", "prompts": [{"token_ids": [1, 2, 3], "n_prompt": 1, "logprobs": [*logprobs]}]}


def test_the_canary_is_the_mean_difference_of_the_tokens_after_the_prompt():
    async def logprobs(token_ids: list[int]) -> list[float]:
        assert token_ids == [1, 2, 3]
        return [-1.0, -2.5]

    assert asyncio.run(canary.difference(logprobs, expecting(-1.0, -2.0))) == 0.25


@pytest.mark.parametrize(
    ("found", "before"), [(0.011, None), (float("nan"), None), (0.002, 0.003), (0.0002, 0.0002)]
)
def test_the_canary_refuses_what_is_too_far_and_what_no_exchange_brought_near(found: float, before: float):
    with pytest.raises(canary.CanaryError, match="expected"):
        canary.check(found, 0.01, before)


@pytest.mark.parametrize(("found", "before"), [(0.009, None), (0.001, 0.003), (3e-6, 0.5), (5e-5, 5e-5)])
def test_the_canary_passes_what_agrees(found: float, before: float):
    canary.check(found, 0.01, before)


# --- real engines


@pytest.fixture(scope="module", autouse=True)
def local_ray(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not any(item.get_closest_marker("slow") for item in request.session.items):
        yield
        return
    with ray_session.connect(None, tmp_path_factory.mktemp("logs")):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models with canaries; what they compute differs by little, as after a fine-tune."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: served_runs.make_model(folder / name, noise=0.02, seed=seed)
        for name, seed in (("a", 1), ("b", 2))
    }


def one_pass(folder: Path, model: Path, engines: run_engines.Engines, name: str) -> dict[str, list[str]]:
    """The texts of a pass of 24 questions in six units, by question."""
    values = {
        "prompts": {"preset": "sandbox"},
        "reward": {"name": "exact_match", "scope": "after_marker"},
        "engine": ENGINE,
        "sampling": {"initial": WARM, "correction": WARM},
        "algorithm": {"n_corrections": 2},
    }
    job = Job(str(model), 1, config.validate(values, section_of), str(folder / name), on_cuda=False)
    rows = [row | {"split": "train"} for row in sandbox.questions("train", 24, seed=3)]
    unit_files.write_questions(rows, folder / "train.parquet", unit_size=4)
    units = unit_files.question_units(folder / "train.parquet", "train")
    assert len(list(rollouts.roll_out(job, units, engines))) == 6
    found = [
        row for file in Path(job.destination).glob("*.parquet") for row in pq.read_table(file).to_pylist()
    ]
    return {row["id"]: [text["text"] for text in row["texts"]] for row in found}


def engines_of(
    actor: type[EngineActor] = EngineActor, max_restarts: int = MAX_RESTARTS, **fields: Any
) -> Any:
    settings = config.validate({"engine": ENGINE | fields}, section_of)
    return run_engines.engines(settings, on_cuda=False, actor=actor, max_restarts=max_restarts)


@pytest.fixture(scope="module")
def fresh(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What engines say that started with model b."""
    with engines_of() as engines:
        return one_pass(tmp_path_factory.mktemp("fresh"), models["b"], engines, "b")


@pytest.mark.slow
def test_engines_take_new_weights_over_and_say_what_fresh_ones_say(
    models: dict[str, Path], fresh: dict[str, list[str]], tmp_path: Path
):
    with engines_of() as engines:
        first = one_pass(tmp_path, models["a"], engines, "a")
        begun = engines.report()
        assert (begun.started, begun.reused) == (2, 0) and begun.canary_difference is not None
        assert engines.make_room().gpus == 0, "no GPU is reserved"
        second = one_pass(tmp_path, models["b"], engines, "b")
        report = engines.report()
        assert (report.started, report.reused, report.notes) == (0, 2, [])
        assert report.canary_difference is not None and report.canary_difference < 1e-4
        assert 0 < report.hand_over_s < begun.start_s
        progress = engines.progress()
        assert progress is not None
        assert (progress["engines_up"], progress["questions"], progress["texts"]) == (2, 24, 72)
    assert second == fresh != first


def stale_actor(log: Path) -> type[EngineActor]:
    """An engine whose exchange of weights does nothing, and which notes what it answers."""

    class Stale(EngineActor):
        async def reload(self, model: str) -> None:
            with log.open("a") as file:
                file.write("reload\n")

        async def roll_out(self, unit: Any) -> Any:
            with log.open("a") as file:
                file.write(f"unit {os.getpid()}\n")
            return await super().roll_out(unit)

    return Stale


def tampered_actor(log: Path) -> type[EngineActor]:
    """An engine in which a tensor changes behind its back after the exchange."""

    class Tampered(stale_actor(log)):
        async def reload(self, model: str) -> None:
            await EngineActor.reload(self, model)

            def tamper(worker: Any) -> None:
                layer = worker.model_runner.get_model().model.layers[1]
                layer.input_layernorm.weight.data.mul_(1.5)

            await self._finished(self._engine._command(lambda llm: llm.collective_rpc(tamper) and None))
            with log.open("a") as file:
                file.write("reload\n")

    return Tampered


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(stale_actor, marks=pytest.mark.cluster), tampered_actor])
def test_an_engine_with_wrong_weights_is_replaced_before_it_answers(
    kind: Any, models: dict[str, Path], fresh: dict[str, list[str]], tmp_path: Path
):
    with engines_of(kind(tmp_path / "log"), actors=1) as engines:
        one_pass(tmp_path, models["a"], engines, "a")
        second = one_pass(tmp_path, models["b"], engines, "b")
        report = engines.report()
    assert (report.started, report.reused) == (1, 0) and "canary" in report.notes[0]
    assert second == fresh
    before, after = (tmp_path / "log").read_text().split("reload\n")
    old, new = set(before.splitlines()), set(after.splitlines())
    assert len(old) == len(new) == 1 and old != new, "the wrong engine answered nothing"


@pytest.mark.slow
@pytest.mark.cluster
def test_a_model_that_engines_do_not_reproduce_ends_the_pass(models: dict[str, Path], tmp_path: Path):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for file in models["a"].iterdir():
        (wrong / file.name).write_bytes(file.read_bytes())
    (wrong / "canary.json").write_text((models["b"] / "canary.json").read_text())
    with (
        engines_of(actors=1) as engines,
        pytest.raises(RuntimeError, match=r"log-probabilities within 0\.01"),
    ):
        one_pass(tmp_path, wrong, engines, "wrong")
    assert not list((tmp_path / "wrong").glob("*.parquet"))


@pytest.mark.slow
def test_an_engine_that_cannot_start_says_why(models: dict[str, Path], tmp_path: Path):
    values = json.loads((models["a"] / "config.json").read_text()) | {"model_type": "llama", "hidden_size": 7}
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in models["a"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "config.json").write_text(json.dumps(values))
    with engines_of(actors=1) as engines, pytest.raises(RuntimeError, match="engine: expected it to start"):
        one_pass(tmp_path, broken, engines, "broken")


@pytest.mark.slow
def test_an_engine_that_dies_at_its_first_unit_says_why(tmp_path: Path):
    """Heads of size 16, which the look at the model refuses before a run: vLLM's CPU build has no kernel."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(sandbox.model_path(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    shape = AutoConfig.from_pretrained(sandbox.model_path(), head_dim=16)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "model")
    expected = (
        r"found 1 dead before one had finished a unit; last: RuntimeError: Unsupported CPU attention "
        r"configuration: head_dim=16 .*worker-.*\.err"
    )
    with engines_of(actors=1, max_restarts=0) as engines, pytest.raises(RayError, match=expected):
        one_pass(tmp_path, tmp_path / "model", engines, "dies")


def dies_when_asked(log: Path) -> type[EngineActor]:
    """An engine whose process ends in an exchange, or at its first unit, once each."""

    class Mortal(EngineActor):
        async def reload(self, model: str) -> None:
            self._die_once("reload")
            await super().reload(model)

        async def roll_out(self, unit: Any) -> Any:
            self._die_once("unit")
            return await super().roll_out(unit)

        def _die_once(self, when: str) -> None:
            if when in log.read_text().split():
                log.write_text(log.read_text().replace(when, "died", 1))
                os._exit(1)

    return Mortal


@pytest.mark.slow
@pytest.mark.cluster
def test_engines_that_die_in_an_exchange_or_at_a_unit_lose_nothing(
    models: dict[str, Path], fresh: dict[str, list[str]], tmp_path: Path
):
    log = tmp_path / "log"
    log.write_text("")
    with engines_of(dies_when_asked(log)) as engines:
        one_pass(tmp_path, models["a"], engines, "a")
        log.write_text("reload unit")
        second = one_pass(tmp_path, models["b"], engines, "b")
        report = engines.report()
    assert second == fresh
    assert log.read_text().split() == ["died", "died"]
    assert len(report.notes) == 2 and report.started in (1, 2), "the last one may come too late to help"


def test_engines_leave_a_cpu_to_read_and_grade_when_a_node_goes(monkeypatch: pytest.MonkeyPatch):
    """On nodes and engines that are only said to be there; a real cluster: tests/faults/test_kills.py."""
    nodes, ended, asked = [{"CPU": 2.0}, {"CPU": 2.0}], [], []
    monkeypatch.setattr(pool.ray_session, "nodes", lambda: nodes)
    monkeypatch.setattr(pool, "LOOK_S", 0.01)
    found = pool.EnginePool(EngineSpec(config.Engine(), on_cuda=False))
    found._engines = [pool._Engine(None, up=True, units=units) for units in (2, 1, 3)]
    first = list(found._engines)

    async def end(engine: Any) -> None:
        ended.append(engine)
        found._engines.remove(engine)

    async def start() -> None:
        asked.append(len(found._engines) >= found._room())  # then it asks for another CPU beside its own
        found._engines.append(pool._Engine(None))

    monkeypatch.setattr(found, "_end", end)
    monkeypatch.setattr(found, "_start", start)

    async def scenario() -> None:
        task = asyncio.create_task(found._keep_room())
        await asyncio.sleep(0.1)
        assert not ended, "three of four CPUs"
        nodes.pop()
        await asyncio.sleep(0.2)
        task.cancel()

    asyncio.run(scenario())
    assert ended == [first[1], first[0]] and asked == [True, True]
