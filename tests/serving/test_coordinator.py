"""The pin is the endpoint's, and its replicas move to another version one at a time."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from harness import scripted_loader, served_runs
from harness.scripted_loader import ScriptedLoader, answers, following, publish, until

from stasc_ray import store
from stasc_ray.serving import coordinator
from stasc_ray.serving.coordinator import Coordinator, Link
from stasc_ray.serving.follow import Versions


class Reached:
    """A coordinator that can be started anew, or be out of reach."""

    def __init__(self, pinned: str | None = None) -> None:
        self.actor, self.away = Coordinator(pinned), False

    def link(self, replica: str) -> Link:
        return Link(replica, self.call)

    async def call(self, method: str, *arguments: Any) -> Any:
        if self.away:
            raise ConnectionError("it is being started again")
        return getattr(self.actor, method)(*arguments)


def test_one_replica_has_the_turn_until_it_gives_it_back_or_falls_silent(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(coordinator.time, "monotonic", lambda: now)
    actor = Coordinator()
    assert actor.meet("a", None, wants_turn=True)[1] and not actor.meet("b", None, wants_turn=True)[1]
    assert not actor.meet("c", None, wants_turn=False)[1]
    assert actor.meet("a", None, wants_turn=True)[1], "it goes on with its turn"
    actor.meet("a", None, wants_turn=False)
    assert actor.meet("b", None, wants_turn=True)[1] and not actor.meet("a", None, wants_turn=True)[1]
    now = coordinator.TURN_S
    assert actor.meet("a", None, wants_turn=True)[1], "b has said nothing for so long"


def test_the_pin_comes_from_the_config_moves_and_survives_the_coordinator() -> None:
    reached = Reached("v0001")
    first, second = reached.link("a"), reached.link("b")

    async def scenario() -> None:
        await first.meet(wants_turn=False)
        assert (first.pinned, second.pinned) == ("v0001", None)
        await first.pin("v0003")
        await second.meet(wants_turn=False)
        assert second.pinned == "v0003"
        reached.actor = Coordinator("v0001")  # it died, and knows no more than the config
        await second.meet(wants_turn=False)
        await first.meet(wants_turn=False)
        assert first.pinned == second.pinned == "v0003"
        await second.pin(None)
        reached.away = True
        await first.meet(wants_turn=True)
        assert first.pinned == "v0003" and not first.may_move
        with pytest.raises(ConnectionError):
            await first.pin("v0001")
        reached.away = False
        await first.meet(wants_turn=False)
        assert first.pinned is None

    asyncio.run(scenario())


def test_without_the_coordinator_a_replica_moves_on_after_a_while(monkeypatch) -> None:
    reached = Reached()
    link = reached.link("a")
    reached.away = True

    async def scenario() -> None:
        await link.meet(wants_turn=True)
        assert not link.may_move
        monkeypatch.setattr(coordinator, "TURN_S", 0.0)
        await link.meet(wants_turn=True)
        assert link.may_move

    asyncio.run(scenario())


@pytest.fixture
def run(tmp_path: Path) -> store.RunFolder:
    found = served_runs.make_run(tmp_path / "run", "serve.poll_s=0.02")
    publish(found, 0)
    return found


@pytest.mark.parametrize("swap", ["beside", "in_place"])
def test_versions_roll_over_replicas_one_at_a_time(run, swap) -> None:
    reached, preparing, most = Reached(), 0, 0

    async def slowly(version: str) -> None:
        nonlocal preparing, most
        preparing += 1
        most = max(most, preparing if rolling else 0)
        await asyncio.sleep(0.1)
        preparing -= 1

    replicas = [
        scripted_loader.versions(run, ScriptedLoader(slowly), f"serve.swap={swap}", link=reached.link(name))
        for name in "abc"
    ]

    rolling = False

    async def scenario() -> None:
        nonlocal rolling
        others = [asyncio.create_task(one.follow()) for one in replicas[1:]]
        await until(lambda: all(answers(one, "v0000")() for one in replicas))
        rolling = True
        publish(run, 1)
        while not all(answers(one, "v0001")() for one in replicas):
            assert sum(one.active is None for one in replicas) < 2
            await asyncio.sleep(0.005)
        await replicas[1].pin("v0000")
        await until(lambda: all(answers(one, "v0000")() for one in replicas))
        for task in others:
            task.cancel()
        for one in replicas[1:]:
            await one.close()

    following(replicas[0], scenario)
    assert most == 1


def test_a_replica_without_an_engine_needs_no_turn(run) -> None:
    reached = Reached()
    reached.actor.meet("another", None, wants_turn=True)
    versions: Versions = scripted_loader.versions(run, ScriptedLoader(), link=reached.link("a"))

    async def scenario() -> None:
        await until(answers(versions, "v0000"))
        publish(run, 1)
        await asyncio.sleep(0.2)
        assert answers(versions, "v0000")(), "the other one has the turn"
        reached.actor.meet("another", None, wants_turn=False)
        await until(answers(versions, "v0001"))

    following(versions, scenario)
