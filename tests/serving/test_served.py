"""A real endpoint: Ray Serve on a local Ray, vLLM on the CPU, the sandbox model and variants of it, over HTTP
on loopback."""

import contextlib
import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
from harness import served_runs
from harness.served import CAPACITY, PATIENCE_S, QUESTIONS, Load, greedy, serving

from benchmarks.ray_cluster import free_port
from stasc_ray import store
from stasc_ray.generation import rollouts, run_engines, unit_files
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.recipes import section_of
from stasc_ray.tasks import sandbox

pytestmark = pytest.mark.slow


def test_the_newest_version_answers_what_its_weights_say(served):
    ready = {"ready": True, "version": served.run.latest(), "reason": None}
    assert httpx.get(f"{served.url}/readyz").json() == ready
    assert served.health()["guarded"], "Serve's proxy has loaded the endpoint's middleware"
    assert served.health()["verified"].startswith("canary")
    for question in QUESTIONS[:3]:
        body = served.correct(question).json()
        assert (body["initial_answer"], body["answer"]) == greedy(served.run, body["model_version"], question)


def test_a_served_answer_at_temperature_0_is_the_evaluated_one(served, tmp_path):
    """Rollouts by Ray Data on the version's model, greedy as in evaluation, against the endpoint: text by
    text, whatever the policy, so their figures are the same too.
    """
    version = served.health()["active"]
    (manifest,) = [one for one in served.run.versions() if one["version"] == version]
    settings = store.read_config(served.run.path, section_of)
    names = ("recipe", "until_right", "with_history")

    def job(name: str) -> Job:
        evaluation = settings.evaluation.model_copy(update={"greedy": True, "policy": name, "rounds": 2})
        asked = settings.model_copy(update={"evaluation": evaluation})
        model, folder = str(served.run.path / manifest["model"]), str(tmp_path / name)
        return Job(model, manifest["iteration"], asked, folder, on_cuda=False)

    rows = [row | {"split": "test"} for row in sandbox.questions("dev", 8, seed=0)]
    unit_files.write_questions(rows, tmp_path / "test.parquet", len(rows))
    (unit,) = unit_files.question_units(tmp_path / "test.parquet", "test")
    with run_engines.engines(settings, on_cuda=False) as engines:
        for name in names:
            list(rollouts.roll_out(job(name), [unit], engines))
    for name in names:
        traces = pq.read_table(tmp_path / name / f"{unit.name}.parquet").to_pylist()
        assert len(traces) == len(rows)
        for trace in traces:
            reply = served.correct(trace["question"], policy=name, rounds=2).json()
            said = [(turn["turn"], turn["text"]) for turn in reply["turns"]]
            assert said == [(text["turn"], text["text"]) for text in trace["texts"]], name
            tokens = sum(len(text["token_ids"]) for text in trace["texts"])
            assert reply["usage"]["completion_tokens"] == tokens, name


def test_a_stream_comes_in_pieces_that_add_up(served):
    with (
        served.client() as client,
        client.stream(
            "POST", "/v1/correct", json={"question": QUESTIONS[0], "temperature": 0, "stream": True}
        ) as reply,
    ):
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    found = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names[0] == "start" and names[-1] == "result" and names.count("token") > 4
    texts = {
        turn: "".join(data["text"] for data in found if data.get("turn") == turn)
        for turn in ("answer", "correction")
    }
    assert (texts["answer"], texts["correction"]) == (found[-1]["initial_answer"], found[-1]["answer"])
    assert (texts["answer"], texts["correction"]) == greedy(
        served.run, found[-1]["model_version"], QUESTIONS[0]
    )


def test_the_openai_client_works_streaming_too(served):
    import openai

    client = openai.OpenAI(
        base_url=f"{served.url}/v1", api_key=served.keys["plain"], max_retries=0, timeout=PATIENCE_S
    )
    assert {"latest", "v0000", "v0001"} <= {model.id for model in client.models.list()}
    ask = {"model": "latest", "messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0}
    whole = client.chat.completions.create(**ask)
    initial, correction = greedy(served.run, whole.model, QUESTIONS[0])
    assert whole.choices[0].message.content == correction
    assert whole.model_extra["stasc"]["initial_answer"] == initial
    plain = client.chat.completions.create(**ask, extra_body={"stasc": {"rounds": 0}})
    assert plain.choices[0].message.content == initial
    pieces, usage = [], None
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(pieces) == correction and len(pieces) > 3
    assert usage.completion_tokens == whole.usage.completion_tokens
    with pytest.raises(openai.NotFoundError, match="v1/models"):
        client.chat.completions.create(**{**ask, "model": "gpt-4"})
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_the_requests_of_lm_eval_work(served):
    """What lm-eval's local-chat-completions sends for generate_until."""
    payload = {
        "messages": [{"role": "user", "content": QUESTIONS[0], "type": "text"}],
        "model": "latest",
        "max_tokens": 32,
        "temperature": 0,
        "stop": ["\n\n"],
        "seed": 1234,
    }
    with served.client() as client:
        reply = client.post("/v1/chat/completions", json=payload)
    assert reply.json()["choices"][0]["message"]["content"]


def test_same_seed_same_answers(served):
    first, second = (served.correct(QUESTIONS[0], temperature=1, samples=4, seed=5).json() for _ in range(2))
    assert first["votes"] == second["votes"] and sum(vote["votes"] for vote in first["votes"]) == 4


def test_request_ids_are_echoed_once(served):
    reply = httpx.get(f"{served.url}/healthz", headers={"x-request-id": "mine-1"})
    assert reply.headers.get_list("x-request-id") == ["mine-1"]


def test_ask_prints_both_answers_and_says_how_to_start(served):
    from typer import Typer
    from typer.testing import CliRunner

    from stasc_ray.cli import serve

    app = Typer()
    app.command()(serve.ask)
    arguments = [QUESTIONS[0], "--temperature", "0", "--key", served.keys["plain"]]
    found = CliRunner().invoke(app, [*arguments, "--url", served.url])
    initial, correction = greedy(served.run, served.health()["active"], QUESTIONS[0])
    assert found.exit_code == 0 and initial in found.stdout and correction in found.stdout
    found = CliRunner().invoke(app, [*arguments, "--url", f"http://127.0.0.1:{free_port()}"])
    assert found.exit_code == 1 and "stasc serve" in found.output


@pytest.mark.served
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(served, stream):
    slow = {"question": QUESTIONS[0], "temperature": 0, "rounds": 64, "stream": stream}
    with served.client() as client, contextlib.suppress(httpx.ReadTimeout):
        client.timeout = httpx.Timeout(PATIENCE_S, read=1.0 if not stream else PATIENCE_S)
        with client.stream("POST", "/v1/correct", json=slow) as reply:
            assert reply.status_code == 200
            lines = reply.iter_lines()  # httpx closes the connection when this goes
            next(lines)
            assert served.health()["in_flight"] == 1
    left = time.monotonic()
    served.wait(lambda health: health["in_flight"] == 0, seconds=15)
    took = time.monotonic() - left
    print(f"slot free {took:.2f} s after the client left (stream={stream})")
    assert took < 2, "a second, and another for two cores that do all of it"


@pytest.mark.served
def test_at_twice_the_capacity_every_request_is_answered_or_told_to_come_back(served):
    capacity = sum(CAPACITY.values())

    def ask(number: int) -> tuple[int, bool, float]:
        started = time.monotonic()
        reply = served.correct(QUESTIONS[number % 8], rounds=8)
        return reply.status_code, "retry-after" in reply.headers, time.monotonic() - started

    with ThreadPoolExecutor(CAPACITY["in_flight"]) as pool:  # as many as are answered at once
        at_once_s = max(seconds for _, _, seconds in pool.map(ask, range(CAPACITY["in_flight"])))
    with ThreadPoolExecutor(2 * capacity) as pool:
        found = list(pool.map(ask, range(4 * capacity)))
    statuses = [status for status, _, _ in found]
    assert set(statuses) <= {200, 429} and statuses.count(200) >= capacity
    assert all(retry == (status == 429) for status, retry, _ in found)
    accepted = sorted(seconds for status, _, seconds in found if status == 200)
    told = f"{statuses.count(200)} x 200, {statuses.count(429)} x 429, slowest accepted {accepted[-1]:.1f} s"
    print(f"{told}; without a queue {at_once_s:.1f} s")
    rounds_of_the_queue = 1 + CAPACITY["queue"] / CAPACITY["in_flight"]
    assert accepted[-1] < 2 * rounds_of_the_queue * at_once_s, (
        "p99 (here the slowest) is bounded by the queue; 2 for noise"
    )


@pytest.mark.served
def test_versions_change_under_load_and_no_request_fails(served):
    with Load(served, clients=6) as load:
        time.sleep(1)
        published = [served.publish(name) for name in ("b", "lora", "tied")]
        time.sleep(1)
    assert set(published) <= load.check()
    answers = {greedy(served.run, version, QUESTIONS[0]) for version in published}
    assert len(answers) == 3, "the models must answer differently, or this shows nothing"
    print(f"{len(load.replies)} requests, slowest {max(reply.seconds for reply in load.replies):.2f} s")


@pytest.mark.cluster
@pytest.mark.parametrize("swap", ["in_place", "beside"])
def test_ten_versions_in_two_minutes_and_no_request_fails(tmp_path, swap):
    """One every 12 s. In place each is reached; a new engine takes longer to start, and goes on to the
    newest."""
    with serving(tmp_path, f"serve.swap={swap}", "finetune.method=full") as served:
        started = time.monotonic()
        with Load(served, clients=8) as load:
            published = []
            for number in range(10):
                published.append(served_runs.publish(served.run, served.models / "ab"[number % 2]))
                time.sleep(max(started + 12 * (number + 1) - time.monotonic(), 0))
            served.wait(lambda health: health["active"] == published[-1])
            time.sleep(1)
        answered = load.check() & set(published)
    assert len(answered) == 10 if swap == "in_place" else published[-1] in answered and len(answered) >= 3
    slowest = max(reply.seconds for reply in load.replies)
    took = f"{len(load.replies)} requests in {time.monotonic() - started:.0f} s, {len(answered)} of 10 versions answered"
    print(f"{swap}: {took}, longest stall {slowest:.2f} s")


@pytest.mark.served
def test_versions_that_are_broken_are_never_served(served, tmp_path):
    broken = {}
    for what in served_runs.SPOILT:
        broken[what] = served_runs.spoilt(served.models, what, tmp_path / what)
    before = served.health()["active"]
    with Load(served, clients=1) as load:
        refused = {}
        for what, folder in broken.items():
            version = served_runs.publish(served.run, folder)
            refused[what] = served.wait(lambda health, version=version: version in health["refused"])[
                "refused"
            ][version]
    assert load.check() == {before}
    assert "log-probabilities" in refused["other_weights"] and "canary" in refused["no_canary"]
    assert "tokenizer" in refused["other_tokenizer"]
    assert "stasc_canary_failures_total" in httpx.get(f"{served.url}/metrics").text
    served.publish("a")


@pytest.mark.served
def test_an_admin_moves_back_and_forward(served):
    latest = served.run.latest()
    for version, expected in (("v0000", "v0000"), ("latest", latest)):
        with served.client("admin") as client:
            assert client.post("/v1/admin/activate", json={"version": version}).status_code == 200
        served.wait(lambda health, expected=expected: health["active"] == expected)
        assert served.correct(QUESTIONS[0]).json()["model_version"] == expected
    assert served.correct(QUESTIONS[0], version=latest).status_code == 200
    served.wait(lambda health: health["loaded"] == [latest])
    assert served.correct(QUESTIONS[0], version="v0000").status_code == 409


@pytest.mark.served
def test_a_pin_survives_its_replica_its_coordinator_and_serves_controller(served):
    import ray

    def activate(version: str) -> int:
        with served.client("admin") as client:
            return client.post("/v1/admin/activate", json={"version": version}).status_code

    def actors(part: str) -> list:
        named = ray.util.list_named_actors(all_namespaces=True)
        return [
            ray.get_actor(one["name"], namespace=one["namespace"]) for one in named if part in one["name"]
        ]

    latest = served.run.latest()
    assert activate("v0000") == 200
    served.wait(lambda health: health["active"] == "v0000")
    (coordinator,) = actors("coordinator")
    ray.kill(coordinator)
    served.wait(lambda _: actors("coordinator") and activate("v0000") == 200)
    ray.kill(actors("coordinator")[0])  # and now it is the replica that knows
    (controller,) = actors("SERVE_CONTROLLER")
    ray.kill(controller, no_restart=False)
    served.wait(lambda _: bool(actors("coordinator")))
    time.sleep(3)  # for a meeting
    (replica,) = [
        p for p in psutil.Process().children(recursive=True) if "ServeReplica" in " ".join(p.cmdline())
    ]
    before = served.health()["replica"]
    replica.kill()
    found = served.wait(lambda health: health["replica"] != before and health["status"] == "ok")
    assert (found["active"], found["pinned"]) == ("v0000", "v0000")
    served.wait(lambda _: activate("latest") == 200)
    served.wait(lambda health: health["active"] == latest)


@pytest.mark.served
def test_a_replica_that_is_killed_is_replaced(served):
    (replica,) = [
        p for p in psutil.Process().children(recursive=True) if "ServeReplica" in " ".join(p.cmdline())
    ]
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(served.correct, question, rounds=16) for question in QUESTIONS[:4]]
        served.wait(lambda health: health["in_flight"] == 4)
        replica.kill()
        found = [reply.result() for reply in replies]
    statuses = [reply.status_code for reply in found]
    assert set(statuses) <= {200, 503} and 503 in statuses
    for reply in found:
        assert reply.status_code == 200 or (
            reply.json()["error"]["type"] == "unavailable_error" and reply.headers["retry-after"]
        )
    served.wait(lambda health: health["status"] == "ok")
    assert served.correct(QUESTIONS[0]).status_code == 200
    print(f"requests on the killed replica: {statuses}")


@pytest.mark.served
def test_an_engine_that_is_killed_is_replaced(served):
    killed = served.wait(lambda health: len(health["loaded"]) == 1 and health["loading"] is None)[
        "engine_pids"
    ]
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(served.correct, question, rounds=16) for question in QUESTIONS[:4]]
        served.wait(lambda health: health["in_flight"] == 4)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        statuses = [reply.result().status_code for reply in replies]
    assert set(statuses) <= {200, 503}
    served.wait(lambda health: health["status"] == "ok" and not set(health["engine_pids"]) & set(killed))
    assert served.correct(QUESTIONS[0]).status_code == 200
    print(f"requests on the killed engine: {statuses}")


@pytest.mark.served
def test_metrics_of_the_other_replica_are_there_while_one_is_silent(tmp_path):
    def page() -> str:
        with contextlib.suppress(httpx.TransportError):  # Serve may still ask the silent one for the page
            return httpx.get(f"{served.url}/metrics", timeout=9).text
        return ""

    def page_with(line: str) -> str:
        end = time.monotonic() + PATIENCE_S
        while line not in (text := page()).splitlines():
            assert time.monotonic() < end, text
        return text

    with serving(tmp_path, "serve.replicas=2") as served:
        served.correct(QUESTIONS[0])
        whole = page_with("stasc_silent_replicas 0.0")
        assert len(re.findall("^stasc_active_version{", whole, re.MULTILINE)) == 2
        assert len(re.findall("^stasc_kv_cache_usage{", whole, re.MULTILINE)) == 2
        assert re.search(r'^stasc_first_token_seconds_count{.*turn="answer"} 1.0', whole, re.MULTILINE)
        silent, *_ = (
            p for p in psutil.Process().children(recursive=True) if "ServeReplica" in " ".join(p.cmdline())
        )
        silent.suspend()
        try:
            partial = page_with("stasc_silent_replicas 1.0")
        finally:
            silent.resume()
        assert len(re.findall("^stasc_active_version{", partial, re.MULTILINE)) == 1
