"""A replica's versions on real engines, without Serve: weights exchanged in place, adapters, canaries."""

import asyncio
import shutil
from pathlib import Path

import pytest
from harness import served, served_runs

from stasc_ray import config, store
from stasc_ray.generation.samples import Request
from stasc_ray.recipes import section_of
from stasc_ray.runtime import model_folder
from stasc_ray.serving import app, coordinator, follow
from stasc_ray.tasks import chat, prompts

GREEDY = Request(config.Sampling(temperature=0.0, max_tokens=24), 1, 0)


@pytest.fixture(scope="module")
def local_ray():
    with served.local_ray():
        yield


async def step(followed: follow.Versions) -> None:
    """Look, and move to its end."""
    await followed.look()
    while followed._moves:
        await asyncio.wait(followed._moves.values())
        await asyncio.sleep(0)


async def answer(followed: follow.Versions) -> str:
    messages = prompts.initial_messages({"question": "47+385+12"}, config.Prompts(preset="sandbox"))
    async with followed.hold(None) as loaded:
        token_ids = chat.Chat(loaded.engine.chat.tokenizer).render(messages, add_generation_prompt=True)
        return (await loaded.engine.generate(token_ids, GREEDY)).text


@pytest.mark.slow
@pytest.mark.served
def test_in_place_the_engine_stays_where_the_canary_agrees_and_is_replaced_where_it_does_not(
    local_ray, tmp_path
):
    for name, values in {
        "a": {"noise": 0.05, "seed": 1},
        "b": {"noise": 0.05, "seed": 2},
        "tied": {"tied": True},
    }.items():
        served_runs.make_model(tmp_path / name, **values)
    run = served_runs.make_run(tmp_path / "run", "serve.swap=in_place")
    served_runs.publish(run, tmp_path / "a")
    settings = store.read_config(run.path, section_of)
    endpoint = app.Endpoint(str(run.path), settings, on_cuda=False)

    async def scenario() -> None:
        followed = follow.Versions(run, settings, app.engine_spec(endpoint), coordinator.alone())
        await followed.start()
        first = await answer(followed)

        served_runs.publish(run, tmp_path / "b")
        await step(followed)
        assert followed.active and followed.active.version == "v0001"
        assert followed.engine_starts == 1, "the weights were exchanged, no engine was started"
        assert await answer(followed) != first

        served_runs.publish(run, tmp_path / "a")
        await step(followed)
        assert (await answer(followed), followed.engine_starts) == (first, 1)

        # vLLM on CPU does not notice that it cannot load tied weights in place; the canary does.
        served_runs.publish(run, tmp_path / "tied")
        await step(followed)
        assert followed.active.version == "v0003" and followed.active.verified.startswith("canary")

        # Here both ways fail: the version before is back.
        broken = shutil.copytree(tmp_path / "b", tmp_path / "broken")
        shutil.copy(tmp_path / "a" / "model.safetensors", broken / "model.safetensors")
        served_runs.publish(run, broken)
        await step(followed)
        assert followed.active.version == "v0003" and "log-probabilities" in followed.reasons()["v0004"]
        print(f"engines started: {followed.engine_starts}")
        await followed.close()

    asyncio.run(scenario())


@pytest.mark.slow
def test_lora_versions_are_adapters_on_one_engine(local_ray, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        served_runs.make_lora_model(tmp_path / name, noise=0.02, seed=seed)
    run = served_runs.make_run(tmp_path / "run", "finetune.method=lora", "finetune.lora.rank=4")
    served_runs.publish(run, None)
    settings = store.read_config(run.path, section_of)
    endpoint = app.Endpoint(str(run.path), settings, on_cuda=False)

    async def scenario() -> None:
        followed = follow.Versions(run, settings, app.engine_spec(endpoint), coordinator.alone())
        await followed.start()
        answers = [await answer(followed)]
        for name in ("a", "b", "a"):
            version = served_runs.publish(run, tmp_path / name)
            await step(followed)
            assert followed.active and followed.active.version == version, followed.reasons()
            assert followed.active.verified.startswith("canary")
            answers.append(await answer(followed))
        assert followed.engine_starts == 1
        assert len(set(answers)) == 3 and answers[1] == answers[3]
        assert answers[1] == greedy(tmp_path / "a") and answers[2] == greedy(tmp_path / "b")

        # One that vLLM cannot read, and one that is not the one the canary is of: the engine and its version
        # go on.
        unreadable = Path(shutil.copytree(tmp_path / "b", tmp_path / "unreadable"))
        (unreadable / "adapter" / "adapter_config.json").write_text("{}")
        other = Path(shutil.copytree(tmp_path / "b", tmp_path / "other"))
        shutil.copy(tmp_path / "a" / "adapter" / "adapter_model.safetensors", other / "adapter")
        for folder, reason in ((unreadable, "could not be loaded"), (other, "log-probabilities")):
            version = served_runs.publish(run, folder)
            await step(followed)
            assert reason in followed.reasons()[version]
            assert followed.active.version == "v0003" and await answer(followed) == answers[3]
        # Corrected on the spot, it is tried again, and read again.
        broken = run.stage(int(version[1:]), "model")
        shutil.copy(tmp_path / "b" / "adapter" / "adapter_model.safetensors", broken / "adapter")
        await step(followed)
        assert followed.active.version == version and await answer(followed) == answers[2]

        # Back and forth while a request is held: every handle of the one engine is given up but the active
        # one's.
        async with followed.hold(None):
            for pinned in ("v0000", version):
                await followed.link.pin(pinned)
                await step(followed)
                assert followed.active.version == pinned
        await asyncio.sleep(0.1)
        assert followed.active.engine._handles == [followed.active.engine] and followed.retiring == []
        assert await answer(followed) == answers[2] and followed.engine_starts == 1
        await followed.close()

    asyncio.run(scenario())


def greedy(model: Path) -> str:
    """The initial answer of the merged weights, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = model_folder.load_tokenizer(str(model))
    messages = prompts.initial_messages({"question": "47+385+12"}, config.Prompts(preset="sandbox"))
    ids = torch.tensor([chat.Chat(tokenizer).render(messages, add_generation_prompt=True)])
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.slow
def test_a_start_with_a_broken_latest_serves_the_newest_version_that_is_not(local_ray, tmp_path):
    served_runs.make_model(tmp_path / "a", noise=0.05, seed=1)
    run = served_runs.make_run(tmp_path / "run")
    served_runs.publish(run, tmp_path / "a")
    (tmp_path / "a" / "config.json").unlink()
    served_runs.publish(run, tmp_path / "a")
    settings = store.read_config(run.path, section_of)

    async def scenario() -> None:
        followed = follow.Versions(
            run,
            settings,
            app.engine_spec(app.Endpoint(str(run.path), settings, on_cuda=False)),
            coordinator.alone(),
        )
        await followed.start()
        assert followed.active and followed.active.version == "v0000"
        assert "config.json" in followed.reasons()["v0001"]
        await followed.close()

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_run_without_a_version_that_works_says_why(tmp_path):
    run = served_runs.make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    served_runs.publish(run, tmp_path / "empty")
    settings = store.read_config(run.path, section_of)
    followed = follow.Versions(
        run,
        settings,
        app.engine_spec(app.Endpoint(str(run.path), settings, on_cuda=False)),
        coordinator.alone(),
    )
    with pytest.raises(RuntimeError, match=r"v0000: .*config"):
        asyncio.run(followed.start())
