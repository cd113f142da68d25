"""A replica follows its run, on scripted engines: what it serves while versions, pins and engines change."""

import asyncio
import contextlib
import os
import random
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from harness import scripted_loader, served_runs
from harness.scripted_loader import ScriptedLoader, answers, following, publish, until

from stasc_ray import store
from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.serving import decide, follow, published
from stasc_ray.serving.errors import ApiError
from stasc_ray.serving.follow import Versions


@pytest.fixture
def run(tmp_path: Path) -> store.RunFolder:
    return scripted_loader.two_versions(tmp_path / "run")


def noting(versions: Versions) -> list[str]:
    """Gets each version that begins to answer."""
    found: list[str] = []
    begin = versions._answer_with

    def note(loaded: Any) -> None:
        found.append(loaded.version)
        begin(loaded)

    versions._answer_with = note  # type: ignore[method-assign]
    return found


def test_a_pin_that_comes_while_another_version_loads_is_never_left(run) -> None:
    """At 05a8cae the active version went v0001 -> v0002 -> v0001."""
    loads: dict[str, asyncio.Event] = {}

    async def scripted(version: str) -> None:
        await loads.setdefault(version, asyncio.Event()).wait()

    loader = ScriptedLoader(lambda version: scripted(version) if version == "v0002" else None)
    versions = scripted_loader.versions(run, loader)
    answered = noting(versions)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        publish(run, 2)
        await until(lambda: versions.loading == "v0002" and "v0002" in loads)
        await versions.pin("v0001")
        loads["v0002"].set()  # ready at the very moment when it is no longer wanted
        await asyncio.sleep(0.4)
        assert answered == ["v0001"]
        await versions.pin(None)
        await until(answers(versions, "v0002"))
        await until(lambda: len(loader.up) == 1)

    following(versions, scenario)
    assert answered == ["v0001", "v0002"] and not loader.up


def test_what_is_prepared_for_nothing_is_ended(run) -> None:
    loader = ScriptedLoader(lambda version: asyncio.sleep(1e6) if version == "v0002" else None)
    versions = scripted_loader.versions(run, loader)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        publish(run, 2)
        await until(lambda: len(loader.up) == 2)
        await versions.pin("v0000")
        await until(answers(versions, "v0000"))
        await until(lambda: len(loader.up) == 1)

    following(versions, scenario)
    assert versions.refused == {}


def test_versions_that_come_faster_than_engines_start_do_answer(run) -> None:
    loader = ScriptedLoader(lambda _: asyncio.sleep(0.1))
    versions = scripted_loader.versions(run, loader)
    answered = noting(versions)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        for number in range(2, 22):
            publish(run, number)
            await asyncio.sleep(0.05)
        await until(answers(versions, "v0021"))

    following(versions, scenario)
    assert len(answered) > 4 and answered == sorted(answered)


def test_one_error_of_storage_delays_a_version_and_refuses_none_for_ever(run, monkeypatch) -> None:
    monkeypatch.setattr(decide, "RETRY_S", 0.05)
    errors = [OSError(116, "Stale file handle")]
    loader = ScriptedLoader(lambda version: errors.pop() if version == "v0002" and errors else None)
    versions = scripted_loader.versions(run, loader)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        publish(run, 2)
        await until(lambda: "Stale" in versions.reasons().get("v0002", ""))
        await until(answers(versions, "v0002"))
        assert versions.reasons() == {}

    following(versions, scenario)


@pytest.mark.parametrize("swap", ["beside", "in_place"])
def test_a_canary_that_raises_something_unexpected_starts_one_engine_and_leaves_the_old_one(
    run, swap
) -> None:
    """At 05a8cae: nine engines in three seconds, and with `in_place` no version was left."""
    loader = ScriptedLoader(lambda version: KeyError("n_prompt") if "v0002" in version else None)
    versions = scripted_loader.versions(run, loader, f"serve.swap={swap}")

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        publish(run, 2)
        await until(lambda: "KeyError" in versions.reasons().get("v0002", ""))
        await until(answers(versions, "v0001"))
        await asyncio.sleep(0.2)

    following(versions, scenario)
    assert loader.engine_starts == (2 if swap == "beside" else 3)  # in place: a fresh one, and the old one


def test_an_engine_that_dies_while_another_version_is_prepared_is_replaced_at_once(run) -> None:
    loader = ScriptedLoader(lambda version: asyncio.sleep(1e6) if version == "v0002" else None)
    versions = scripted_loader.versions(run, loader)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        first = versions.active
        publish(run, 2)
        await until(lambda: versions.loading == "v0002")
        assert first
        first.engine.dead = EngineDiedError("killed")  # type: ignore[attr-defined]
        await until(lambda: versions.active not in (None, first))
        assert answers(versions, "v0001")() and versions.loading == "v0002"

    following(versions, scenario)


def test_refused_versions_are_no_failed_starts(run) -> None:
    loader = ScriptedLoader(lambda version: None if version == "v0001" else ValueError("another tokenizer"))
    versions = scripted_loader.versions(run, loader)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        for number in range(2, 8):
            version = publish(run, number)
            await until(lambda version=version: version in versions.refused)
        assert versions.active
        versions.report_dead(versions.active, "killed")
        assert not versions.hopeless
        await until(answers(versions, "v0001"))

    following(versions, scenario)


def test_engines_that_do_not_start_make_a_replica_hopeless(run, monkeypatch) -> None:
    monkeypatch.setattr(decide, "RETRY_S", 0.001)
    versions = scripted_loader.versions(run, ScriptedLoader(lambda _: EngineDiedError("no memory")))

    async def scenario() -> None:
        await until(lambda: versions.hopeless)

    following(versions, scenario)


def test_one_broken_manifest_hides_no_version(run) -> None:
    versions = scripted_loader.versions(run, ScriptedLoader())
    broken = run.path / "versions" / "v0000.json"
    whole = broken.read_text()

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        another = '{"version": "v0007", "iteration": 0, "model": "", "created": "2026-01-01"}'
        for number, text in enumerate(("{", "[]", another), start=2):
            broken.write_text(text)
            await until(lambda: "v0000" in versions.reasons())
            await until(answers(versions, publish(run, number)))
            assert list(versions.published.snapshot.manifests) == [
                f"v{one:04d}" for one in range(1, number + 1)
            ]
        broken.write_text(whole)
        await until(lambda: not versions.reasons())

    following(versions, scenario)


def test_a_version_whose_files_change_while_it_answers_goes_on_and_is_reported(run) -> None:
    versions = scripted_loader.versions(run, ScriptedLoader())

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        (run.path / "model1" / "weights").unlink()
        await until(lambda: "goes on from memory" in versions.reasons().get("v0001", ""))
        assert answers(versions, "v0001")() and versions.engine_starts == 1

    following(versions, scenario)


def test_a_version_whose_manifest_is_deleted_while_it_answers_goes_on_and_is_reported(run) -> None:
    versions = scripted_loader.versions(run, ScriptedLoader())

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        (run.path / "versions" / "v0001.json").unlink()
        await until(lambda: "manifest has gone" in versions.reasons().get("v0001", ""))
        await asyncio.sleep(0.1)
        assert answers(versions, "v0001")() and versions.engine_starts == 1
        await until(answers(versions, publish(run, 2)))
        await until(lambda: versions.reasons() == {})

    following(versions, scenario)


def test_an_engine_that_hangs_is_asked_for_a_token_and_then_replaced(run, monkeypatch) -> None:
    monkeypatch.setattr(follow, "PROBE_S", 0.1)
    versions = scripted_loader.versions(run, ScriptedLoader(), "serve.request_timeout_s=0.3")

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        first = versions.active
        assert first
        engine: Any = first.engine
        await until(lambda: engine.probes > 3)  # idle, and it answers each
        assert versions.active is first
        engine.answers = False
        await until(lambda: versions.active is not first)
        await until(answers(versions, "v0001"))

    following(versions, scenario)


def test_an_exchange_that_hangs_ends_and_a_fresh_engine_takes_its_place(run) -> None:
    loader = ScriptedLoader(lambda version: asyncio.sleep(1e6) if version == "exchange v0002" else None)
    versions = scripted_loader.versions(run, loader, "serve.swap=in_place", "engine.start_timeout_s=0.2")

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        publish(run, 2)
        await until(answers(versions, "v0002"))
        assert loader.engine_starts == 2 and len(loader.up) == 1

    following(versions, scenario)


def test_a_version_that_was_pinned_by_mistake_is_not_on_the_way_to_latest(run) -> None:
    loader = ScriptedLoader(lambda version: asyncio.sleep(0.2) if version != "v0001" else None)
    versions = scripted_loader.versions(run, loader)
    answered = noting(versions)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        await versions.pin("v0001")
        for number in (2, 3):
            publish(run, number)
        await until(lambda: "v0003" in versions.published.snapshot.manifests)
        await versions.pin("v0002")
        await until(lambda: versions.loading == "v0002")
        await versions.pin(None)
        await until(answers(versions, "v0003"))

    following(versions, scenario)
    assert answered == ["v0001", "v0003"]


def test_an_engine_that_dies_is_replaced_also_while_two_versions_are_on_their_way(run) -> None:
    loader = ScriptedLoader(lambda version: asyncio.sleep(1e6) if version > "v0001" else None)
    versions = scripted_loader.versions(run, loader)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        first: Any = versions.active
        publish(run, 2)
        await until(lambda: versions.loading == "v0002")
        publish(run, 3)
        await until(lambda: versions.published.snapshot.latest == "v0003")
        first.engine.dead = EngineDiedError("killed")
        await until(lambda: versions.active not in (None, first))

    following(versions, scenario)


def test_failed_starts_of_a_next_version_make_no_replica_hopeless(run, monkeypatch) -> None:
    monkeypatch.setattr(decide, "RETRY_S", 0.001)
    loader = ScriptedLoader(lambda version: EngineDiedError("no room") if version == "v0002" else None)
    versions = scripted_loader.versions(run, loader)

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        publish(run, 2)
        await until(lambda: versions.refused.get("v0002") and versions.refused["v0002"].attempts > 6)
        assert versions.active
        versions.report_dead(versions.active, "killed")
        assert not versions.hopeless

    following(versions, scenario)


def test_an_error_of_the_follower_is_told_and_it_goes_on(run, monkeypatch) -> None:
    look, errors = published.Published.look, [ArithmeticError("a bug")]

    def failing(self: published.Published, about: Any) -> published.Snapshot:
        if errors and "v0001" in self.snapshot.manifests:
            raise errors.pop()
        return look(self, about)

    monkeypatch.setattr(published.Published, "look", failing)
    versions = scripted_loader.versions(run, ScriptedLoader())

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        await until(lambda: not errors)
        publish(run, 2)
        await until(answers(versions, "v0002"))

    following(versions, scenario)


def test_a_start_without_a_published_version_waits_and_says_so(tmp_path) -> None:
    run = served_runs.make_run(tmp_path / "run", "serve.poll_s=0.02")
    versions = scripted_loader.versions(run, ScriptedLoader())

    async def scenario() -> None:
        await versions.start()
        assert versions.active is None and versions.why_not_ready() == "nothing is published"
        publish(run, 0)
        await until(answers(versions, "v0000"))
        assert versions.why_not_ready() is None

    following(versions, scenario)


def test_a_start_where_no_version_works_says_why(run) -> None:
    versions = scripted_loader.versions(run, ScriptedLoader(lambda _: ValueError("another tokenizer")))
    with pytest.raises(RuntimeError, match=r"(?s)v0001: another tokenizer.*v0000: another"):
        asyncio.run(versions.start())


def test_storage_that_hangs_keeps_no_engine_from_being_minded(run, monkeypatch) -> None:
    hangs = False
    look = published.Published.look

    def slow(self: published.Published, about: Any) -> published.Snapshot:
        while hangs:
            time.sleep(0.01)
        return look(self, about)

    monkeypatch.setattr(published.Published, "look", slow)
    monkeypatch.setattr(follow, "LOOK_S", 0.1)
    versions = scripted_loader.versions(run, ScriptedLoader())

    async def scenario() -> None:
        nonlocal hangs
        await until(answers(versions, "v0001"))
        hangs, first = True, versions.active
        await asyncio.sleep(0.1)
        assert first
        first.engine.dead = EngineDiedError("killed")  # type: ignore[attr-defined]
        try:
            await until(lambda: versions.active not in (None, first))
        finally:
            hangs = False

    following(versions, scenario)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_leaves_what_was_seen(run) -> None:
    versions = scripted_loader.versions(run, ScriptedLoader())

    async def scenario() -> None:
        await until(answers(versions, "v0001"))
        (run.path / "versions").chmod(0)
        try:
            await until(lambda: versions.published.snapshot.problem)
            assert list(versions.published.snapshot.manifests) == ["v0000", "v0001"]
        finally:
            (run.path / "versions").chmod(stat.S_IRWXU)

    following(versions, scenario)


class Storm:
    """Publishes, breaks, pins and kills at random; and how each version came to answer."""

    def __init__(self, run: store.RunFolder, seed: int, *how: str) -> None:
        self.run, self.draw, self.number = run, random.Random(seed), 1
        self.broken: set[str] = set()
        self.loader = ScriptedLoader(self.slowly)
        self.versions = scripted_loader.versions(run, self.loader, *how)
        self._activate = self.versions._answer_with
        self.versions._answer_with = self.check  # type: ignore[method-assign]
        self.checked = 0

    async def slowly(self, version: str) -> None:
        await asyncio.sleep(self.draw.random() * 0.02)
        if (name := version.split()[-1]) in self.broken:
            raise ValueError("wrong canary")
        if self.draw.random() < 0.2:
            raise EngineDiedError(f"{name} died")

    def check(self, loaded: Any) -> None:
        """It is the wanted version; or that one cannot answer now, and what answered before goes on."""
        versions, seen = self.versions, self.versions.published.snapshot
        wanted = versions.link.pinned or seen.latest
        impossible = wanted in versions.refused or wanted not in seen.manifests
        # while versions come, each may answer on the way to the newest
        on_the_way = versions.link.pinned is None and (versions._last or "") < loaded.version < (wanted or "")
        assert loaded.version not in self.broken
        assert loaded.version in (wanted, versions._last) or impossible or on_the_way, (
            loaded.version,
            wanted,
        )
        self.checked += 1
        self._activate(loaded)

    def publish(self) -> str:
        self.number += 1
        return publish(self.run, self.number)

    async def one(self) -> None:
        match self.draw.randrange(5):
            case 0:
                self.publish()
            case 1:
                self.broken.add(f"v{self.number + 1:04d}")
                self.publish()
            case 2:
                pinned = f"v{self.draw.randrange(self.number + 2):04d}"
                await self.versions.pin(self.draw.choice([None, pinned]))
            case 3 if self.versions.active:
                self.versions.active.engine.dead = EngineDiedError("killed")  # type: ignore[attr-defined]
            case _:
                await asyncio.sleep(0.05)
        await asyncio.sleep(self.draw.random() * 0.03)


BASE = "serve.initial_answers_from=base"


@pytest.mark.parametrize(
    ("how", "seed"),
    [
        *((how, seed) for how in ("serve.swap=beside", "serve.swap=in_place") for seed in range(5)),
        *(
            (how, seed)
            for how in ("serve.keep_warm=2", BASE, f"{BASE} serve.swap=in_place")
            for seed in (0, 1)
        ),
    ],
)
def test_in_a_storm_nothing_unwanted_begins_to_answer_and_at_last_the_wanted_version_does(
    run, how, seed, monkeypatch
) -> None:
    monkeypatch.setattr(decide, "RETRY_S", 0.005)
    storm = Storm(run, seed, *how.split())
    versions, asked = storm.versions, 0

    async def ask() -> None:
        nonlocal asked
        while True:
            with contextlib.suppress(ApiError):
                async with versions.hold(None) as held:
                    first = versions.writes_first(held)
                    assert first.version == ("v0000" if BASE in how else held.version)
                    assert {first.engine, held.engine} <= storm.loader.up
                    asked += 1
            await asyncio.sleep(0.001)

    async def scenario() -> None:
        asking = asyncio.create_task(ask())
        for _ in range(40):
            await storm.one()
        await versions.pin(wanted := storm.draw.choice([None, "v0000"]))
        final = storm.publish() if wanted is None else wanted
        await until(answers(versions, final))
        await until(lambda: len(storm.loader.up) == len(versions.loaded) and not versions.retiring)
        assert len(versions.warm) <= (2 if "keep_warm" in how else 1 if BASE in how else 0)
        assert not asking.done(), asking.exception()
        asking.cancel()

    following(versions, scenario)
    assert storm.checked > 3 and asked > 10 and not storm.loader.up
