"""What chat clients send, replayed: each gets its answer, and what it said arrives where it belongs.

clients.json has the bodies and where they were read: repository, path and commit. Those of LangChain, LiteLLM and
LlamaIndex were sent by the packages themselves to a server that kept them.
"""

import json
import re
from pathlib import Path

import pytest
from harness.scripted_api import Api, ScriptedEngine

from stasc_ray.generation.samples import NOTHING_MORE

CLIENTS = json.loads(Path(__file__).with_name("clients.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    return Api(
        tmp_path_factory.mktemp("clients"), "engine.max_model_len_tokens=4096", engine=ScriptedEngine()
    )


def content(reply, stream: bool) -> str:
    """What the client shows as the answer."""
    if not stream:
        return reply.json()["choices"][0]["message"]["content"]
    *events, done = reply.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def turns(prompt: str) -> list[tuple[str, str]]:
    """(role, text) of each message of a prompt, as the sandbox model's template writes them."""
    return re.findall(r"<\|(system|user|assistant)\|>(.*?)<\|end\|>", prompt, re.DOTALL)


@pytest.mark.parametrize("sent", CLIENTS, ids=[f"{sent['client']}: {sent['request']}" for sent in CLIENTS])
def test_a_clients_request_is_answered_and_all_of_it_arrives(api, sent) -> None:
    api.engine.asked.clear()
    reply = api.call("POST", "/v1/chat/completions", json=sent["body"])
    assert reply.status_code == 200, reply.text
    assert content(reply, sent["body"].get("stream", False)) == "second"
    assert len(api.engine.asked) == 2, "an answer and its correction"
    for prompt, _ in api.engine.asked:
        left = turns(prompt)
        for role, text in [*sent["context"], ["user", sent["question"]]]:
            while left and not (left[0][0] == role and text in left[0][1]):
                left.pop(0)  # neighbours of one role are one message, so a turn may hold several texts
            assert left, f"{role}: {text!r} does not stand where it was said in {prompt!r}"
    (_, hidden), (_, last) = api.engine.asked
    assert {name: getattr(last.sampling, name) for name in sent["sampling"]} == sent["sampling"]
    final = {"stop": list(last.final.stop), "top_logprobs": last.final.top_logprobs}
    final["schema"] = last.final.schema and json.loads(last.final.schema)
    assert {name: value for name, value in final.items() if value not in (None, [])} == sent.get("final", {})
    assert hidden.final == NOTHING_MORE, "what is asked of the answer is not asked of the turns before it"


def test_eight_clients_are_among_them_and_every_body_says_where_it_is_from() -> None:
    assert len({sent["client"] for sent in CLIENTS}) >= 8
    for sent in CLIENTS:
        for source in sent["sources"]:
            repository, path, commit, *_ = source.split()
            assert repository.count("/") == 1 and "." in path and len(commit) == 40
