"""A chat as a question in its context: nothing that was said is dropped without a word."""

import json
import typing
from dataclasses import replace

import pytest
from harness.scripted_api import Api, ScriptedEngine
from openai.types.chat import ChatCompletion, completion_create_params

from stasc_ray.generation.samples import NOTHING_MORE, FinalTurn, RefusedError
from stasc_ray.recipes.trace import TokenLogprob
from stasc_ray.serving import conversation, openai
from stasc_ray.serving.conversation import ChatMessage, in_context
from stasc_ray.serving.errors import ApiError
from stasc_ray.serving.schemas import ContextMessage, JsonSchema, ResponseFormat


def messages(*turns: tuple[str, object]) -> list[ChatMessage]:
    return [ChatMessage.model_validate({"role": role, "content": content}) for role, content in turns]


def shown(context: list[ContextMessage]) -> list[tuple[str, str]]:
    return [(one.role, one.content) for one in context]


CHECK = (("system", "Be brief."), ("user", "2+2?"), ("assistant", "5"), ("user", "Double check that."))


def test_the_last_user_message_is_asked_in_the_context_of_all_before() -> None:
    found = conversation.read(messages(*CHECK), correct_last=False)
    assert found.question == "Double check that." and found.initial_answer is None
    assert shown(found.context) == [("system", "Be brief."), ("user", "2+2?"), ("assistant", "5")]


@pytest.mark.parametrize("turns", [CHECK, CHECK[:3]])
def test_an_answer_is_corrected_if_the_request_says_so(turns) -> None:
    found = conversation.read(messages(*turns), correct_last=True)
    assert (found.question, found.initial_answer) == ("2+2?", "5")
    assert shown(found.context) == [("system", "Be brief.")]


@pytest.mark.parametrize(
    ("turns", "correct_last"),
    [
        (CHECK[:1], False),
        ([("user", " ")], False),
        ([("user", None)], False),
        (CHECK[:2], True),
        ((("user", " "), ("assistant", "5")), True),
        ((("user", "2+2?"), ("assistant", "5"), ("tool", "r")), True),
        ((("user", "2+2?"), ("assistant", "4"), ("user", " ")), False),
        (CHECK[:1], True),
        ([("assistant", "5"), ("user", "Why?")], True),
        ([("user", [{"type": "image_url", "image_url": {"url": "x"}}])], False),
    ],
)
def test_what_has_no_question_is_refused(turns, correct_last) -> None:
    with pytest.raises(ApiError) as refused:
        conversation.read(messages(*turns), correct_last=correct_last)
    assert refused.value.status == 400


@pytest.mark.parametrize("ending", [("assistant", "5"), ("tool", "4")])
def test_a_chat_that_does_not_end_with_the_user_has_its_last_question_asked_again(ending) -> None:
    said = (("user", "Hi"), ("user", "2+2?"), ending)
    found = conversation.read(messages(*said), correct_last=False)
    assert found.question == "2+2?" and found.initial_answer is None
    told = ("user", "Result: 4") if ending[0] == "tool" else ending
    assert shown(found.context) == [("user", "Hi"), ("user", "2+2?"), told]


@pytest.mark.parametrize("ending", [("assistant", " "), ("assistant", None), ("system", "Be brief.")])
def test_nothing_said_after_the_last_question_repeats_nothing(ending) -> None:
    found = conversation.read(messages(("user", "2+2?"), ending), correct_last=False)
    assert found.question == "2+2?"
    asked = [{"role": "user", "content": "Q"}]
    assert in_context(asked, found.context)[-1] == asked[0]
    assert ("user", "2+2?") not in shown(found.context)


@pytest.mark.parametrize("mark", ["prefix", "partial"])
def test_a_message_to_be_continued_is_refused(mark) -> None:
    begun = ChatMessage.model_validate({"role": "assistant", "content": "Two and", mark: True})
    with pytest.raises(ApiError, match="no text is continued"):
        conversation.read([*messages(("user", "Name two primes.")), begun], correct_last=False)


def test_parts_empty_texts_calls_and_results_of_tools_are_told() -> None:
    history = [
        {"role": "developer", "content": ""},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "here?"}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "w", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": "Sure?"},
    ]
    found = conversation.read([ChatMessage.model_validate(one) for one in history], correct_last=False)
    assert shown(found.context) == [
        ("system", ""),
        ("user", "Weather here?"),
        ("assistant", 'Call: {"name": "w", "arguments": "{}"}'),
        ("user", "Result: rain"),
        ("assistant", "Rain."),
    ]


def test_a_recipes_messages_stand_after_the_context_in_roles_that_take_turns() -> None:
    asked = [{"role": "system", "content": "Solve it."}, {"role": "user", "content": "Q"}]
    context = [
        ContextMessage(role=role, content=text)
        for role, text in (("user", "a"), ("system", "Be brief."), ("assistant", "b"), ("user", "c"))
    ]
    assert in_context(asked, context) == [
        {"role": "system", "content": "Solve it.\n\nBe brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c\n\nQ"},
    ]
    assert in_context(asked, []) == asked
    assert in_context(asked[1:], [ContextMessage(role="system", content=" ")]) == asked[1:]


def test_both_turns_are_asked_in_the_context(tmp_path) -> None:
    api = Api(tmp_path)
    body = {"model": "latest", "messages": [{"role": role, "content": text} for role, text in CHECK]}
    assert api.call("POST", "/v1/chat/completions", json=body).status_code == 200
    assert len(api.engine.asked) == 2
    for prompt, _ in api.engine.asked:
        places = [prompt.index(text) for text in ("Be brief.", "2+2?", "5", "Double check that.")]
        assert places == sorted(places)
    api.engine.asked.clear()
    body["stasc"] = {"correct_last": True}
    reply = api.call("POST", "/v1/chat/completions", json=body).json()
    ((prompt, _),) = api.engine.asked
    assert reply["stasc"]["initial_answer"] == "5"
    assert "2+2?" in prompt and "Double check" not in prompt


ASKED = {"model": "latest", "messages": [{"role": "user", "content": "Why?"}]}
VALUES = {
    "audio": {"format": "wav", "voice": "x"},
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "modalities": ["audio"],
    "reasoning_effort": "low",
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "low",
    "web_search_options": {},
}
"""Of fields that are refused, values that ask for something."""


def test_every_field_of_openais_request_is_supported_refused_or_harmless(tmp_path) -> None:
    api = Api(tmp_path)
    theirs = set(typing.get_type_hints(completion_create_params.CompletionCreateParamsBase)) | {"stream"}
    supported = theirs & set(openai.ChatRequest.model_fields)
    assert theirs == supported | set(openai.HARMLESS) | set(VALUES)
    assert set(openai.NEUTRAL) < set(VALUES)
    for name in openai.HARMLESS:
        assert api.call("POST", "/v1/chat/completions", json={**ASKED, name: "x"}).status_code == 200, name
    for name, values in openai.NEUTRAL.items():
        for value in values:
            found = api.call("POST", "/v1/chat/completions", json={**ASKED, name: value})
            assert found.status_code == 200, (name, value)
    for name, value in {**VALUES, "temprature": 1}.items():
        found = api.call("POST", "/v1/chat/completions", json={**ASKED, name: value})
        error = found.json()["error"]
        assert (found.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")


def test_sampling_values_reach_the_turn_they_are_for(tmp_path) -> None:
    api = Api(tmp_path)
    values = {
        "temperature": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
    }
    body = {**ASKED, **values, "max_completion_tokens": 9}
    assert api.call("POST", "/v1/chat/completions", json=body).status_code == 200
    initial, correction = (request.sampling for _, request in api.engine.asked)
    for name, value in values.items():
        assert getattr(initial, name) == getattr(correction, name) == value
    assert (initial.max_tokens, correction.max_tokens) == (32, 9)
    api.engine.asked.clear()
    api.call("POST", "/v1/chat/completions", json={**body, "stasc": {"rounds": 0}})
    assert [request.sampling.max_tokens for _, request in api.engine.asked] == [9]


@pytest.mark.parametrize(
    ("overrides", "asked", "rounds"),
    [
        ((), {}, [1]),
        ((), {"rounds": 0}, [0]),
        ((), {"rounds": 2}, [2]),
        ((), {"rounds": 2, "policy": "until_unchanged"}, [1, 2]),
        (("algorithm.recipe=verdict",), {}, [0, 1]),  # a verdict may end with the first answer
    ],
)
def test_what_is_asked_of_the_answer_is_asked_of_each_turn_that_may_write_it(
    tmp_path, overrides, asked, rounds
) -> None:
    api = Api(tmp_path, *overrides)
    body = {**ASKED, "logit_bias": {"5": -100}, "stop": ["#"], "stasc": asked}
    assert api.call("POST", "/v1/chat/completions", json=body).status_code == 200
    final = FinalTurn(stop=("#",), logit_bias={5: -100.0})
    finals = [request.final for _, request in api.engine.asked]
    if overrides:
        assert finals == [final, NOTHING_MORE, final], "a verdict is no answer"
    else:
        assert finals == [final if place in rounds else NOTHING_MORE for place in range(len(finals))]
    assert len(finals) > max(rounds)


class Refusing(ScriptedEngine):
    """Knows no schema and no bias."""

    async def check(self, request) -> None:
        raise RefusedError("cannot be done")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}),
        ("logit_bias", {"99999": 1}),
    ],
)
def test_what_the_engine_refuses_is_said_before_the_first_turn(tmp_path, name, value, stream) -> None:
    api = Api(tmp_path, engine=Refusing())
    for path, body in (("/v1/chat/completions", ASKED), ("/v1/correct", {"question": "Why?"})):
        reply = api.call("POST", path, json={**body, name: value, "stream": stream})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == name
    assert not api.engine.asked


def test_a_schema_has_bounds() -> None:
    nested: dict = {}
    for _ in range(5000):
        nested = {"items": nested}
    for schema in ({"const": "x" * 70_000}, nested):
        asked = {"type": "json_schema", "json_schema": JsonSchema.model_construct(schema_=schema)}
        with pytest.raises(ApiError, match="at most 65536 characters"):
            ResponseFormat.model_construct(**asked).as_schema()


class Likely(ScriptedEngine):
    """Gives its texts' log-probabilities."""

    async def generate(self, token_ids, request, on_text=None):
        sample = await super().generate(token_ids, request, on_text)
        k = request.final.top_logprobs
        tokens = [TokenLogprob(one, -0.5, ((one, -0.5), ("é", -2.0))[:k]) for one in sample.text]
        return sample if k is None else replace(sample, tokens=tuple(tokens))


def test_log_probabilities_are_in_the_choice_or_its_last_chunk(tmp_path) -> None:
    api = Api(tmp_path, engine=Likely())
    body = {**ASKED, "n": 2, "logprobs": True, "top_logprobs": 2}
    completion = ChatCompletion.model_validate(api.call("POST", "/v1/chat/completions", json=body).json())
    for choice in completion.choices:
        assert choice.logprobs and choice.logprobs.content
        assert "".join(token.token for token in choice.logprobs.content) == "second"
        likely = choice.logprobs.content[0].top_logprobs
        assert [(one.token, one.logprob, one.bytes) for one in likely] == [
            ("s", -0.5, [115]),
            ("é", -2.0, [195, 169]),
        ]
    for n in (1, 2):
        text = api.call("POST", "/v1/chat/completions", json={**body, "n": n, "stream": True}).text
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        assert len([choice for choice in choices if choice["finish_reason"]]) == n
        for choice in choices:
            assert (choice["logprobs"] is not None) == (choice["finish_reason"] is not None)
    plain = api.call("POST", "/v1/chat/completions", json={**ASKED, "logprobs": True}).json()
    assert plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert api.call("POST", "/v1/chat/completions", json=ASKED).json()["choices"][0]["logprobs"] is None


def test_a_bound_on_tokens_above_ours_is_kept_by_ours(tmp_path) -> None:
    api = Api(tmp_path, "serve.max_output_tokens=40")
    for name in ("max_tokens", "max_completion_tokens"):
        api.engine.asked.clear()
        assert api.call("POST", "/v1/chat/completions", json={**ASKED, name: 4096}).status_code == 200
        assert api.engine.asked[-1][1].sampling.max_tokens == 40


def test_n_answers_are_n_choices(tmp_path) -> None:
    api = Api(tmp_path)
    body = api.call("POST", "/v1/chat/completions", json={**ASKED, "n": 3}).json()
    assert [(one["index"], one["message"]["content"]) for one in body["choices"]] == [
        (0, "second"),
        (1, "second"),
        (2, "second"),
    ]
    assert body["choices"][0]["message"]["reasoning_content"] is None
    assert [end["final_answer"] for end in body["stasc"]["ends"]] == ["second"] * 3


def test_each_of_n_streamed_answers_begins_with_its_role(tmp_path) -> None:
    # the first engine dies before a token: the roles are said once all the same
    api = Api(tmp_path, engine=ScriptedEngine(deaths=1))
    text = api.call("POST", "/v1/chat/completions", json={**ASKED, "n": 2, "stream": True}).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    for index in range(2):
        first, *others = [choice["delta"] for choice in choices if choice["index"] == index]
        assert first == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in others) == "second"
        assert not any("role" in delta for delta in others)


@pytest.mark.parametrize(
    ("stasc", "shown"),
    [
        ({}, "second"),
        ({"rounds": 2}, "second\n\nsecond"),
        ({"rounds": 0}, None),
        ({"initial_answer": "5"}, None),
    ],
)
def test_hidden_turns_are_reasoning_also_if_they_say_the_same(tmp_path, stasc, shown) -> None:
    api = Api(tmp_path)
    body = {**ASKED, "messages": [{"role": "user", "content": "first"}], "stasc": stasc}
    message = api.call("POST", "/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("second", shown)


def test_hidden_turns_stream_as_reasoning_and_the_answer_as_content(tmp_path) -> None:
    api = Api(tmp_path)
    text = api.call("POST", "/v1/chat/completions", json={**ASKED, "stream": True}).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: {")]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "first"
    assert "".join(delta.get("content") or "" for delta in deltas) == "second"


def test_where_the_last_turn_is_known_at_the_end_only_its_way_is_told_before_it(tmp_path) -> None:
    body = {**ASKED, "stream": True, "temperature": 1, "stasc": {"samples": 3}}
    text = Api(tmp_path).call("POST", "/v1/chat/completions", json=body).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: {")]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    said = [(name, delta[name]) for delta in deltas for name in delta if name != "role" and delta[name]]
    assert said == [("reasoning_content", "first"), ("content", "second")]


@pytest.mark.parametrize(("status", "path"), [(409, "/v1/correct"), (504, "/v1/correct")])
def test_what_would_not_help_says_that_it_should_not_be_repeated(tmp_path, status, path) -> None:
    api = Api(tmp_path, "serve.request_timeout_s=0.2")
    body = {"question": "slow"} if status == 504 else {"question": "Why?", "version": "v0009"}
    reply = api.call("POST", path, json=body)
    assert reply.status_code == status and reply.headers["x-should-retry"] == "false"


def test_one_model_is_found_by_its_name(tmp_path) -> None:
    api = Api(tmp_path)
    assert api.call("GET", "/v1/models/v0000").json()["id"] == "v0000"
    assert api.call("GET", "/v1/models/latest").json()["id"] == "latest"
    missing = api.call("GET", "/v1/models/gpt-4")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
    assert api.call("HEAD", "/healthz").status_code == 200 and api.call("GET", "/health").status_code == 200
