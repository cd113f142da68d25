"""The attack on an endpoint says what held and what broke; here on the routes alone, without Ray."""

import asyncio
import time

import pytest
from harness.scripted_api import Api, ScriptedEngine, listening

from benchmarks import attack
from benchmarks.ray_cluster import free_port


class Broken(ScriptedEngine):
    """Has a bug."""

    async def generate(self, token_ids, request, on_text=None):
        raise ZeroDivisionError


def test_slow_bodies_are_answered_with_408_and_that_holds(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(attack, "HEALTH_S", 30.0)  # a loaded machine
    with listening(Api(tmp_path, "serve.body_timeout_s=0.5"), port := free_port()):
        target = attack.Target("127.0.0.1", port, None, connections=20)
        (row,) = asyncio.run(attack._all(target, ["slow"]))
    assert (row.statuses, row.broken) == ({408: 20}, []) and row.health_s > 0
    assert "| slow | 20 x 408 |" in attack.table([row]) and "held" in attack.table([row])


def test_an_error_of_the_server_no_answer_and_a_silent_healthz_break_the_rules(tmp_path, monkeypatch) -> None:
    row = attack.Row("one")

    async def ask(port: int) -> None:
        target, body = attack.Target("127.0.0.1", port, None, 1), b'{"question": "Why?"}'
        await attack.raw(target, row, attack.VALID, target.head(len(body)) + body)

    with listening(Api(tmp_path, engine=Broken()), port := free_port()):
        asyncio.run(ask(port))
    asyncio.run(ask(port))  # nobody is there any more
    assert row.statuses == {500: 1, attack.NONE: 1} and len(row.broken) == 2
    assert "broken: 2" in attack.table([row]) and "found no answer" in attack.table([row])
    with attack.Prober(attack.Target("127.0.0.1", port, None, 1)) as prober:
        while not prober.failed:
            time.sleep(0.01)
    assert set(prober.failed) == {"ConnectError"}


@pytest.mark.parametrize(
    "url", ["http://example.com", "https://127.0.0.1", "http://127.0.0.1.example.com:80"]
)
def test_another_host_is_refused(url, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["attack", "--url", url])
    with pytest.raises(SystemExit) as ended:
        attack.main()
    assert ended.value.code == 2 and "expected http:// and one of 127.0.0.1" in capsys.readouterr().err
