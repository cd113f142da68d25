"""Ten minutes in which everything happens to an endpoint that can, under load; and keys that change meanwhile."""

import json
import os
import random
import shutil
import signal
import statistics
import time
from collections import Counter

import httpx
import pytest
from harness import served_runs
from harness.served import QUESTIONS, Load, Served, as_secret, serving

from stasc_ray.serving.keys import add_key

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
VERSIONS, EVERY_S = 50, 12.0
REQUEST_S = 60.0


def activate(served: Served, version: str) -> None:
    with served.client("admin") as client:
        assert client.post("/v1/admin/activate", json={"version": version}).status_code == 200


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("swap", ["in_place", "beside"])
def test_ten_minutes_with_fifty_versions_pins_and_killed_engines(tmp_path, swap):
    """Every fifth version is broken; a minute has a killed engine, and most of the time a pin is set or has
    been."""
    draw, good, broken, kills, pins = random.Random(0), ["v0000", "v0001"], set(), 0, 0
    limits = [f"serve.swap={swap}", "finetune.method=full", f"serve.request_timeout_s={REQUEST_S}"]
    with serving(tmp_path, *limits) as served:
        spoilt = [served_runs.spoilt(served.models, what, tmp_path / what) for what in served_runs.SPOILT]
        began = time.monotonic()
        with Load(served, clients=8) as load:
            for number in range(VERSIONS):
                if number % 5 == 4:
                    broken.add(served_runs.publish(served.run, spoilt[number // 5 % len(spoilt)]))
                else:
                    good.append(served_runs.publish(served.run, served.models / "ab"[number % 2]))
                match number % 5:
                    case 1:
                        activate(served, draw.choice(good[-6:]))
                        pins += 1
                    case 2:
                        time.sleep(EVERY_S / 2)  # in the middle of whatever is going on
                        for pid in served.health()["engine_pids"][:1]:
                            os.kill(pid, signal.SIGKILL)
                            kills += 1
                    case 3:
                        activate(served, "latest")
                time.sleep(max(began + EVERY_S * (number + 1) - time.monotonic(), 0))
            last = served_runs.publish(served.run, served.models / "a")
            served.wait(lambda health: health["active"] == last, seconds=120)
            time.sleep(1)
        took = time.monotonic() - began
        answered = load.check(may_be_told_to_come_back=True)
    assert not answered & broken and last in answered
    statuses, seconds = Counter(reply.status for reply in load.replies), [one.seconds for one in load.replies]
    assert max(seconds) < REQUEST_S + 5, "none hung"
    assert kills >= 9 and statuses[200] > 0.9 * len(load.replies)
    told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    print(
        f"{swap}: {told} in {took:.0f} s; {len(answered)} versions answered, {len(broken)} broken ones never; "
        f"{kills} engines killed, {pins} pins; median {statistics.median(seconds):.2f} s, longest {max(seconds):.1f} s"
    )


def test_a_secret_that_kubernetes_swaps_lets_the_new_key_in_and_the_old_one_no_more(tmp_path):
    with serving(tmp_path) as served, Load(served, clients=4, key="admin") as load:
        second = shutil.copytree(tmp_path / "keys" / "..first", tmp_path / "keys" / "..second")
        held = json.loads((second / "keys.json").read_text())
        (second / "keys.json").write_text(json.dumps([key for key in held if key["name"] != "plain"]))
        old, served.keys["new"] = served.keys["plain"], add_key(second / "keys.json", "new")
        assert [served.client(name).get("/v1/models").status_code for name in ("plain", "new")] == [200, 401]
        as_secret(second)
        shutil.rmtree(tmp_path / "keys" / "..first")
        swapped, statuses = time.monotonic(), []
        while statuses != [401, 200] and time.monotonic() < swapped + 30:
            time.sleep(0.1)
            statuses = [
                httpx.post(
                    f"{served.url}/v1/correct",
                    json={"question": QUESTIONS[0]},
                    headers={"Authorization": f"Bearer {key}"},
                    timeout=30,
                ).status_code
                for key in (old, served.keys["new"])
            ]
        took = time.monotonic() - swapped
    load.check()
    print(f"the new key works and the old one does not {took:.1f} s after the swap")
    assert took < 10
