"""The routes around an engine that is scripted, on no cluster: shapes, limits and errors."""

import asyncio
import base64
import hashlib
import json
import re

import httpx
import pytest
from harness.scripted_api import Api, ScriptedEngine

from stasc_ray.generation.samples import Sample
from stasc_ray.recipes.policies import POLICIES
from stasc_ray.recipes.verdict import Verdict
from stasc_ray.serving import monitor, service, streaming
from stasc_ray.serving.asked import checked
from stasc_ray.serving.keys import KeyRing, add_key
from stasc_ray.serving.schemas import CorrectRequest


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    return Api(tmp_path_factory.mktemp("api"), "serve.max_body_kb=4", "serve.request_timeout_s=0.5")


def events(reply: httpx.Response) -> list[tuple[str, dict]]:
    pairs = [event.split("\n") for event in reply.text.strip().split("\n\n") if event[0] != ":"]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def test_an_answer_names_both_turns_the_version_and_what_it_cost(api):
    body = api.call("POST", "/v1/correct", json={"question": "Why?"}).json()
    assert (body["initial_answer"], body["corrections"], body["answer"]) == ("first", ["second"], "second")
    assert body["changed"] and body["model_version"] == "v0000" and body["votes"] is None
    assert body["usage"]["completion_tokens"] == 6
    assert set(body["timings_ms"]) == {"queue", "initial", "correction", "total"}


def test_a_stream_tells_both_turns_token_by_token_and_ends_with_the_whole_object(api):
    found = events(api.call("POST", "/v1/correct", json={"question": "Why?", "stream": True}))
    assert [name for name, _ in found] == ["start", *["token"] * 11, "result"]
    texts = {
        turn: "".join(data["text"] for name, data in found if data.get("turn") == turn)
        for turn in ("answer", "correction")
    }
    assert texts == {"answer": "first", "correction": "second"}
    assert found[-1][1]["answer"] == "second"


def test_samples_are_voted_on(api):
    body = api.call("POST", "/v1/correct", json={"question": "Why?", "samples": 3}).json()
    assert body["votes"] == [{"answer": "second", "final_answer": "second", "votes": 3}]


@pytest.mark.parametrize(
    ("asked", "text", "final"),
    [
        ({}, "It is 4.\nFinal answer: 4", "4"),
        ({}, "Just 4", "Just 4"),
        ({"choices": ["four", "five"]}, "Final answer: (B)", "B"),
    ],
)
def test_the_final_answer_is_what_the_text_comes_to(tmp_path, asked, text, final):
    api = Api(tmp_path, "prompts.answer_marker=Final answer:", engine=Saying(text))
    body = api.call("POST", "/v1/correct", json={"question": "Why?", "samples": 3, **asked}).json()
    assert body["answer"] == text and body["final_answer"] == final
    assert [(vote["final_answer"], vote["votes"]) for vote in body["votes"]] == [(final, 3)]
    assert [(end["final_answer"], end["changed"]) for end in body["ends"]] == [(final, False)] * 3


class Saying(ScriptedEngine):
    """Says always the same, until it is cut off."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    async def generate(self, token_ids, request, on_text=None) -> Sample:
        return Sample(self.text, (1,), "length")


def test_samples_of_a_given_answer_are_chains_that_do_not_branch(api):
    asked = {"question": "Why?", "initial_answer": "no", "samples": 3, "rounds": 2}
    body = api.call("POST", "/v1/correct", json=asked).json()
    assert body["votes"][0]["votes"] == 3 and body["corrections"] == ["first", "second"]
    assert body["usage"]["completion_tokens"] == 6 * 3
    found = events(api.call("POST", "/v1/correct", json={**asked, "stream": True}))
    assert {data["sample"] for name, data in found if name == "token"} == {0, 1, 2}


def test_rounds_that_are_not_asked_for_are_as_measured(tmp_path):
    api = Api(tmp_path, "evaluation.rounds=3")
    for asked, corrections in (({}, 3), ({"rounds": None}, 3), ({"rounds": 1}, 1), ({"rounds": 0}, 0)):
        body = api.call("POST", "/v1/correct", json={"question": "Why?", **asked}).json()
        assert len(body["corrections"]) == corrections, asked
    body = api.call("POST", "/v1/correct", json={"question": "Why?", "policy": "until_unchanged"}).json()
    assert body["corrections"] == ["second", "first", "second"]


@pytest.mark.parametrize("recipe", ["stasc", "rft", "verdict"])
@pytest.mark.parametrize("name", [name for name, one in POLICIES.items() if not one.needs_reward])
def test_every_policy_answers_here_and_is_charged_for_no_less_than_it_writes(tmp_path, recipe, name):
    api = Api(tmp_path, f"algorithm.recipe={recipe}", "engine.max_model_len_tokens=1024")
    asked = {"question": "Why?", "policy": name, "samples": 2, "rounds": 2, "max_tokens": 3}
    reply = api.call("POST", "/v1/correct", json=asked)
    assert reply.status_code == 200, reply.text
    body, scores = reply.json(), POLICIES[name].scores
    assert len(body["turns"]) >= 1 and sum(vote["votes"] for vote in body["votes"]) >= 0
    of = checked(CorrectRequest(**asked), api.service.settings, api.service.recipe)
    assert body["usage"]["completion_tokens"] <= of.most_tokens, "the engine's texts have three tokens"
    requests = [request for _, request in api.engine.asked]
    assert {request.certainty for request in requests} == {scores == "certainty"}
    assert not scores or all(request.logprob for request in requests)


def test_a_policy_that_needs_references_is_none_here(api):
    reply = api.call("POST", "/v1/correct", json={"question": "Why?", "policy": "oracle_stop"})
    assert (
        reply.status_code == 400 and "oracle_stop" not in reply.json()["error"]["message"].split("found")[0]
    )
    assert "oracle_stop" not in api.call("GET", "/v1/run").json()["policies"]


@pytest.mark.parametrize(
    ("measured", "turns"), [("oracle_stop", 2), ("debate", 2), ("direct", 1), ("self_consistency", 1)]
)
def test_a_run_measured_in_a_way_that_nobody_can_ask_for_is_served_as_its_recipe_says(
    tmp_path, measured, turns
):
    api = Api(tmp_path, f"evaluation.policy={measured}", "evaluation.samples=4")
    reply = api.call("POST", "/v1/correct", json={"question": "Why?"})
    assert reply.status_code == 200 and len(reply.json()["turns"]) == turns


def test_a_verdict_that_a_policy_asks_for_is_read(tmp_path):
    api = Api(tmp_path, engine=Saying("My answer is wrong."))
    body = api.call("POST", "/v1/correct", json={"question": "Why?", "policy": "until_right"}).json()
    assert [(turn["turn"], turn["says_right"]) for turn in body["turns"]] == [
        ("answer", None), ("verdict", False), ("correction", None),
    ]  # fmt: skip


class Judge(ScriptedEngine):
    """Writes a verdict where one is asked for."""

    def __init__(self, verdict: str) -> None:
        super().__init__()
        self.verdict = verdict

    async def generate(self, token_ids, request, on_text=None) -> Sample:
        if not self.chat.tokenizer.decode(token_ids).endswith(
            f"{Verdict().verdict_prompt}<|end|><|assistant|>"
        ):
            return await super().generate(token_ids, request, on_text)
        if on_text:
            on_text(self.verdict)
        return Sample(self.verdict, (1,), "stop")


@pytest.mark.parametrize(
    ("verdict", "turns"),
    [
        ("My answer is right.", ["answer", "verdict"]),
        ("My answer is wrong.", ["answer", "verdict", "correction"]),
        ("Who knows?", ["answer", "verdict", "correction"]),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_a_verdict_is_among_the_turns_and_decides_about_the_correction(tmp_path, verdict, turns, given):
    api = Api(tmp_path, "algorithm.recipe=verdict", engine=Judge(verdict))
    asked = {"question": "Why?", "stream": True, **({"initial_answer": "first"} if given else {})}
    found = events(api.call("POST", "/v1/correct", json=asked))
    result = found[-1][1]
    assert [turn["turn"] for turn in result["turns"]] == turns
    assert [turn["text"] for turn in result["turns"][:2]] == ["first", verdict]
    reads = {"My answer is right.": True, "My answer is wrong.": False}
    assert [turn["says_right"] for turn in result["turns"][:2]] == [None, reads.get(verdict)]
    assert [turn["finish_reason"] for turn in result["turns"][:2]] == [None if given else "stop", "stop"]
    corrected = "correction" in turns
    assert (result["corrections"], result["answer"]) == (
        (["second"], "second") if corrected else ([], "first")
    )
    tokens = [(data["turn"], data["round"], data["sample"]) for name, data in found if name == "token"]
    assert list(dict.fromkeys(tokens)) == [(turn, int(turn != "answer"), 0) for turn in turns[given:]]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"question": " "}, 400, "question"),
        ({"question": None}, 400, "question"),
        ({"rounds": 9}, 400, "rounds"),
        ({"rounds": 0, "initial_answer": "x"}, 400, "rounds"),
        ({"samples": 17}, 400, "samples"),
        ({"policy": "best"}, 400, "policy"),
        ({"policy": "debate", "samples": 1}, 400, "samples"),
        ({"policy": "direct", "initial_answer": "x"}, 400, "rounds"),
        ({"policy": "deepening", "initial_answer": "x"}, 400, "initial_answer"),
        ({"policy": "rci", "initial_answer": "x", "samples": 2}, 400, "samples"),
        ({"samples": 2, "temperature": 0}, 400, "samples"),
        ({"max_tokens": 2000}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"choices": ["one"]}, 400, "choices"),
        ({"qestion": "x"}, 400, "qestion"),
        ({"version": "v0009"}, 409, "version"),
        ({"question": "x" * 300}, 400, "question"),
        ({"question": "x" * 5000}, 413, None),
        ({"question": "slow"}, 504, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_says_why_in_one_shape(api, change, status, param, stream):
    reply = api.call("POST", "/v1/correct", json={"question": "Why?", "stream": stream, **change})
    if stream and status == 504:  # the stream had begun
        (name, body), status = events(reply)[-1], reply.status_code
        assert name == "error"
    else:
        body = reply.json()
    assert reply.status_code == status
    assert set(body["error"]) == {"type", "message", "param", "code"}
    assert body["error"]["param"] == param


def test_a_version_that_is_not_loaded_is_409_and_names_those_that_are(api):
    reply = api.call("POST", "/v1/correct", json={"question": "Why?", "version": "v0009"})
    assert "v0000" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/correct", b"{", 400),
        ("POST", "/v1/correct", b"[" * 3000, 400),
        ("POST", "/v1/correct", b'{"question": "\\ud800"}', 400),
        ("POST", "/v1/correct", b'{"\\ud800": 1}', 400),
        ("POST", "/v1/correct", b"", 400),
        ("GET", "/v1/correct", b"", 405),
        ("GET", "/nothing", b"", 404),
    ],
)
def test_malformed_requests_get_the_same_shape(api, method, path, content, status):
    reply = api.call(method, path, content=content, headers={"content-type": "application/json"})
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"type", "message", "param", "code"}


def test_a_late_request_is_taken_from_the_engine(api):
    before = api.engine.aborted
    assert api.call("POST", "/v1/correct", json={"question": "slow"}).status_code == 504
    assert api.engine.aborted == before + 1
    assert api.service.admission.in_flight == 0


def test_an_engine_that_dies_costs_one_retry_and_then_503(tmp_path):
    once = Api(tmp_path / "once", engine=ScriptedEngine(deaths=1))
    twice = Api(tmp_path / "twice", engine=ScriptedEngine(deaths=2))

    async def ask(api: Api) -> httpx.Response:
        async with api.client() as client:
            return await client.post("/v1/correct", json={"question": "Why?"})

    assert asyncio.run(ask(once)).json()["answer"] == "second"
    reply = asyncio.run(ask(twice))
    assert reply.status_code == 503
    assert reply.json()["error"]["type"] == "unavailable_error"
    assert "Retry-After" in reply.headers


def test_an_engine_that_takes_longer_to_start_than_a_request_may_is_503_and_may_be_asked_again(tmp_path):
    api = Api(tmp_path, "serve.request_timeout_s=0.2")
    api.versions.active, api.versions._moves["v0001"] = None, object()
    reply = api.call("POST", "/v1/correct", json={"question": "Why?"})
    assert reply.status_code == 503 and reply.headers["retry-after"]
    assert "v0001 is being prepared" in reply.json()["error"]["message"]
    assert "x-should-retry" not in reply.headers


@pytest.mark.parametrize(("engine_after_s", "status"), [(0.05, 504), (0.35, 503)])
def test_a_late_request_that_mostly_waited_for_an_engine_may_be_asked_again(tmp_path, engine_after_s, status):
    api = Api(tmp_path, "serve.request_timeout_s=0.5")
    active, api.versions.active = api.versions.active, None
    api.versions._moves["v0001"] = object()  # type: ignore[assignment]

    async def ask() -> httpx.Response:
        async with api.client() as client, asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(client.post("/v1/correct", json={"question": "slow"}))
            await asyncio.sleep(engine_after_s)
            api.versions.active = active
            api.versions._changed.set()
        return asked.result()

    reply = asyncio.run(ask())
    assert (reply.status_code, "retry-after" in reply.headers) == (status, status == 503)


def test_without_keys_only_this_machine_is_answered(api):
    for host, status in {
        "http://localhost:8000": 200,
        "http://[::1]:8000": 200,
        "http://evil.example": 403,
    }.items():
        assert api.call("GET", "/v1/models", base_url=host).status_code == status


def test_without_keys_nobody_is_admin(api):
    assert api.call("POST", "/v1/admin/activate", json={"version": "v0000"}).status_code == 403


def test_with_keys_asking_needs_a_key_and_activating_an_admin_key(tmp_path):
    file = tmp_path / "keys.json"
    plain, admin = (add_key(file, name, admin=name == "admin") for name in ("plain", "admin"))
    ring = KeyRing(file)
    api = Api(tmp_path, keys=ring, loopback_only=False)
    send = {"json": {"question": "Why?"}}
    assert api.call("POST", "/v1/correct", **send).status_code == 401
    assert (
        api.call("POST", "/v1/correct", **send, headers={"Authorization": f"Bearer {plain}"}).status_code
        == 200
    )
    for key, version, status in [(plain, "v0000", 403), (admin, "v0009", 404), (admin, "v0000", 200)]:
        headers = {"Authorization": f"Bearer {key}"}
        reply = api.call("POST", "/v1/admin/activate", json={"version": version}, headers=headers)
        assert reply.status_code == status
    assert api.versions.link.pinned == "v0000"
    api.call(
        "POST", "/v1/admin/activate", json={"version": "latest"}, headers={"Authorization": f"Bearer {admin}"}
    )
    assert api.versions.link.pinned is None
    for open_path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/"):
        assert api.call("GET", open_path).status_code == 200
    unreadable = 'stasc_keys_unreadable{replica="r1"} '
    assert f"{unreadable}0.0" in api.call("GET", "/metrics").text
    file.unlink()
    ring.look()
    assert f"{unreadable}1.0" in api.call("GET", "/metrics").text


def test_a_stream_that_waits_begins_with_a_comment_and_then_tells_errors_as_events(tmp_path, monkeypatch):
    api = Api(tmp_path, "serve.max_in_flight=1", "serve.request_timeout_s=0.5")
    chat = {"messages": [{"role": "user", "content": "Why?"}], "stream": True}
    correct = {"question": "Why?", "stream": True}

    async def ask(path: str, body: dict, busy_s: float) -> httpx.Response:
        """While the only place is taken for some seconds."""
        async with api.client() as client:
            async with api.service.admission.place(1):
                asking = asyncio.create_task(client.post(path, json=body))
                await asyncio.sleep(busy_s)
            return await asking

    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.05)
    waited = asyncio.run(ask("/v1/correct", correct, 0.2))
    assert waited.status_code == 200 and waited.text.startswith(": keep-alive\n\n")
    assert events(waited)[-1][1]["answer"] == "second"
    for path, body, error in (
        ("/v1/correct", correct, 'event: error\ndata: {"error": {"type": "timeout_error"'),
        ("/v1/chat/completions", chat, 'data: {"error": {"type": "timeout_error"'),
    ):
        late = asyncio.run(ask(path, body, 0.7))
        assert late.status_code == 200 and late.text.startswith(": keep-alive\n\n")
        assert error in late.text
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 9)
    assert asyncio.run(ask("/v1/correct", correct, 0.7)).status_code == 504


def test_chat_answers_with_the_correction(api):
    messages = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    body = api.call(
        "POST", "/v1/chat/completions", json={"model": "latest", "messages": messages, "user": "me"}
    ).json()
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "second",
        "reasoning_content": "first",
        "refusal": None,
    }
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert body["stasc"]["initial_answer"] == "first" and body["model"] == "v0000"
    plain = {"model": "latest", "messages": messages, "stasc": {"rounds": 0}}
    assert (
        api.call("POST", "/v1/chat/completions", json=plain).json()["choices"][0]["message"]["content"]
        == "first"
    )


def test_chat_stops_at_a_stop_string(api):
    asked = {"model": "latest", "messages": [{"role": "user", "content": "Why?"}], "stop": ["co", "zzz"]}
    choice = api.call("POST", "/v1/chat/completions", json=asked).json()["choices"][0]
    assert choice["message"]["content"] == "se"
    lines = (
        api.call("POST", "/v1/chat/completions", json={**asked, "stream": True}).text.strip().split("\n\n")
    )
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == "se"
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "gpt-4"}, 404),
        ({"n": 2, "stasc": {"samples": 2}}, 400),
        ({"top_logprobs": 2}, 400),
        ({"logprobs": True, "top_logprobs": 21}, 400),
        ({"logit_bias": {"a": 1}}, 400),
        ({"logit_bias": {"5": 101}}, 400),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, 413),
        ({"top_k": 2**64}, 400),  # vLLM's own process on CUDA cannot be sent it, and the engine would end
        ({"stop": ["x" * 300]}, 400),
        ({"response_format": {"type": "yaml"}}, 400),
        ({"response_format": {"type": "json_schema"}}, 400),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}}, 400),
        ({"tools": [{}]}, 400),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
        ({"messages": []}, 400),
        ({"stasc": {"round": 1}}, 400),
    ],
)
def test_chat_refuses_what_it_cannot_do(api, change, status):
    asked = {"model": "latest", "messages": [{"role": "user", "content": "Why?"}], **change}
    reply = api.call("POST", "/v1/chat/completions", json=asked)
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"type", "message", "param", "code"}


@pytest.mark.parametrize(("top_k", "status"), [(2**31 - 1, 200), (2**31, 400), (2**64, 400)])
def test_a_number_that_no_engine_could_be_sent_is_refused(api, top_k, status):
    assert api.call("POST", "/v1/correct", json={"question": "Why?", "top_k": top_k}).status_code == status


def test_models_lists_latest_and_every_version(api):
    cards = api.call("GET", "/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["latest", "v0000"]
    assert cards[0]["stasc"]["version"] == "v0000"


def test_run_tells_what_the_versions_scored(api):
    body = api.call("GET", "/v1/run").json()
    assert (body["recipe"], body["variant"]) == ("stasc", "EIF") and "until_right" in body["policies"]
    assert body["versions"][0]["dev"] == {"r_y1": 0.5, "r_y2": 0.5}
    assert body["active"] == body["latest"] == "v0000"


def test_metrics_of_all_replicas_are_one_page(api):
    api.call("POST", "/v1/correct", json={"question": "Why?"})
    text = api.call("GET", "/metrics").text
    assert text.count("# TYPE stasc_requests_total counter") == 1
    assert 'stasc_active_version{replica="r1",version="v0000"} 1.0' in text
    assert 'replica="r2"' in text


def test_metrics_tell_each_turns_times_and_what_the_engine_says_of_itself(tmp_path, monkeypatch):
    api = Api(tmp_path)
    api.call("POST", "/v1/correct", json={"question": "Why?", "rounds": 2})

    def lines() -> list[str]:
        return [line for line in api.call("GET", "/metrics").text.splitlines() if 'replica="r1"' in line]

    assert 'stasc_first_token_seconds_bucket{le="0.25",replica="r1",turn="answer"} 1.0' in lines()
    assert 'stasc_token_seconds_bucket{le="0.02",replica="r1",turn="correction"} 2.0' in lines()
    assert 'stasc_turn_seconds_count{replica="r1",turn="correction"} 2.0' in lines()
    assert 'stasc_engine_running{replica="r1",version="v0000"} 3.0' in lines()
    assert 'stasc_engine_waiting{replica="r1",version="v0000"} 2.0' in lines()
    assert 'stasc_kv_cache_usage{replica="r1",version="v0000"} 0.25' in lines()
    assert any('stasc_swap_seconds_bucket{le="600.0"' in line for line in lines())
    monkeypatch.setattr(service, "LOAD_S", 0.05)
    api.engine.silent = True
    assert not [line for line in lines() if "kv_cache" in line], "no old figure of an engine that is silent"


def test_the_page_of_metrics_lacks_a_silent_replica_and_says_so(monkeypatch):
    """At 05a8cae one silent replica turned /metrics into an error 500, or hid all others."""
    monkeypatch.setattr(monitor, "PATIENCE_S", 0.05)

    async def answers() -> list:
        return monitor.Monitor().families("r1")

    async def dies() -> list:
        raise RuntimeError("the actor died")

    found, silent = asyncio.run(monitor.in_time([answers(), asyncio.sleep(60, []), dies()]))
    page = monitor.as_page([*found, [monitor.silence(silent)]]).decode()
    assert 'stasc_in_flight{replica="r1"} 0.0' in page and "stasc_silent_replicas 2.0" in page


def test_openapi_documents_every_error_with_the_one_shape(api):
    document = api.call("GET", "/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (path, status)


def test_the_documentation_names_every_route_and_object_and_loads_nothing(api):
    """At 05a8cae /docs and /redoc loaded scripts from elsewhere, on the origin where the page keeps a key."""
    reply, document = api.call("GET", "/docs"), api.call("GET", "/openapi.json").json()
    assert reply.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "script-src" not in reply.headers["content-security-policy"]
    assert not re.search(r"<script|src=|https?://|@import", reply.text)
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}</code>" in reply.text
    ids, links = (set(re.findall(pattern, reply.text)) for pattern in (r'id="(\w+)"', r'href="#(\w+)"'))
    assert document["components"]["schemas"].keys() <= ids and links <= ids
    assert api.call("GET", "/redoc").status_code == api.call("GET", "/v1/models/").status_code == 404


def test_on_the_page_no_script_runs_but_its_own(api):
    reply = api.call("GET", "/")
    (policy,) = re.findall(r"script-src ([^;]*);", reply.headers["content-security-policy"])
    (script,) = re.findall(r"<script[^>]*>(.*)</script>", reply.text, re.DOTALL)
    assert policy == f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def test_no_text_of_a_request_is_logged(api, caplog):
    with caplog.at_level("INFO", logger="ray.serve"):
        api.call("POST", "/v1/correct", json={"question": "my secret question"})
    (line,) = [record for record in caplog.records if getattr(record, "event", "") == "request"]
    assert line.stasc_status == 200 and line.stasc_route == "/v1/correct"
    assert "secret" not in caplog.text and "second" not in caplog.text
