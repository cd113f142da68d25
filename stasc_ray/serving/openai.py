"""OpenAI's chat-completions protocol over `Service.correct`: the last user message asks, in the context of
those before it; the correction answers.
"""

import time
from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stasc_ray.serving import conversation
from stasc_ray.serving.conversation import ChatMessage
from stasc_ray.serving.errors import ApiError, invalid
from stasc_ray.serving.published import LATEST
from stasc_ray.serving.schemas import (
    CorrectRequest,
    CorrectResponse,
    Finish,
    LogitBias,
    ResponseFormat,
    StopString,
    StopStrings,
    Text,
    Token,
    TopK,
    Usage,
)

HARMLESS = (
    "metadata",
    "moderation",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
"""Fields of OpenAI's protocol that change no answer: they are taken, and nothing follows from them."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
}
"""Values by which a field asks for nothing. Every other value, and every other field, is refused."""


class StreamOptions(BaseModel):
    """What a stream tells at its end."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Correction(BaseModel):
    """What /v1/correct can do and OpenAI's protocol has no words for."""

    model_config = ConfigDict(extra="forbid")
    rounds: int | None = Field(
        None, ge=0, description="0 asks for the plain first answer; default: as measured"
    )
    policy: str | None = Field(None, max_length=64, description="As in /v1/correct")
    samples: int = Field(1, ge=1)
    documents: list[str] = Field([], max_length=64)
    choices: list[Text] = Field([], max_length=26)
    initial_answer: str | None = None
    correct_last: bool = Field(
        False, description="Correct the assistant's last answer; its question is the user message before it"
    )


class ChatRequest(BaseModel):
    """A chat completion. Other fields of the protocol, see HARMLESS and NEUTRAL."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"model": "latest", "messages": [{"role": "user", "content": "47+385+12"}]}]
        },
    )
    model: str = Field(LATEST, max_length=256, description="`latest` or a loaded version")
    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=1024,
        description="The last user message is the question, what comes before is its context",
    )
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: TopK | None = Field(None, ge=-1, description="Likeliest tokens kept; 0 and -1 keep all")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    max_tokens: int | None = Field(None, ge=1, description="As max_completion_tokens")
    max_completion_tokens: int | None = Field(None, ge=1, description="Of the final answer's turn")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, description="Answers; stasc.samples votes over several")
    stop: StopString | StopStrings | None = Field(
        None, description="The final answer ends before the first of these"
    )
    response_format: ResponseFormat | None = Field(None, description="Of the final answer")
    logit_bias: LogitBias | None = Field(None, description="Of the final answer")
    logprobs: bool | None = Field(None, description="Of the final answer's tokens")
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stasc: Correction = Field(default_factory=lambda: Correction.model_validate({}))

    def as_correct_request(self, most_tokens: int) -> CorrectRequest:
        """The same question for `Service.correct`.

        Args:
            most_tokens: that an answer may have here. A client's bound above it, such as the 4096 of
                Continue, is kept by this one; `finish_reason` says if it cut the answer.

        Raises:
            ApiError: 400, something that this endpoint cannot do.
        """
        for name, value in (self.model_extra or {}).items():
            if name not in HARMLESS and value not in NEUTRAL.get(name, (None,)):
                what = f"{name} = {value!r}"[:200]
                raise invalid(name, f"{what}: not supported here; leave it out", code="unsupported_parameter")
        if (self.n or 1) > 1 and self.stasc.samples > 1:
            raise invalid("n", "expected n answers, or one by a vote over stasc.samples, found both")
        asked = conversation.read(self.messages, correct_last=self.stasc.correct_last)
        given = asked.initial_answer if self.stasc.initial_answer is None else self.stasc.initial_answer
        asked_tokens = self.max_completion_tokens or self.max_tokens
        return CorrectRequest(
            question=asked.question,
            context=asked.context,
            rounds=self.stasc.rounds,
            policy=self.stasc.policy,
            samples=max(self.n or 1, self.stasc.samples),
            documents=self.stasc.documents,
            choices=self.stasc.choices,
            initial_answer=given,
            stream=False,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(0, self.top_k),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            max_tokens=None,
            max_answer_tokens=asked_tokens and min(asked_tokens, most_tokens),
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or [],
            response_format=self.response_format,
            logit_bias=self.logit_bias or {},
            logprobs=self.logprobs or False,
            top_logprobs=self.top_logprobs or 0,
            seed=None if self.seed is None else self.seed % 2**63,
            version=self.model,
        )


class AssistantMessage(BaseModel):
    """The corrected answer, and the turns that led to it."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None = None
    refusal: None = None


class Logprobs(BaseModel):
    """Of a choice's tokens."""

    content: list[Token]
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int = 0
    message: AssistantMessage
    finish_reason: Finish
    logprobs: Logprobs | None = None


class ChatResponse(BaseModel):
    """A chat completion; `stasc` tells how the answer came about."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    stasc: dict[str, Any] = Field(description="Of the reply of /v1/correct what is in no other field")


def known_model(model: str, versions: Collection[str]) -> None:
    """Raises ApiError 404, as OpenAI does, for a model that was never published."""
    if model != LATEST and model not in versions:
        message = f"expected `latest` or a published version, found {model!r}; GET /v1/models lists them"
        raise ApiError(404, "not_found_error", message, "model", code="model_not_found")


def chat_response(request: ChatRequest, answered: CorrectResponse) -> ChatResponse:
    """The reply to a request without streaming."""
    return ChatResponse(
        id=_id(answered.id),
        created=int(time.time()),
        model=answered.model_version,
        choices=_choices(request, answered),
        usage=answered.usage,
        stasc=extra(answered),
    )


def _choices(request: ChatRequest, answered: CorrectResponse) -> list[Choice]:
    """`n` answers, or the one that was chosen."""
    alone = (request.n or 1) == 1
    chosen = next(end for end in answered.ends if end.answer == answered.answer)
    final = max(place for place, turn in enumerate(answered.turns) if turn.text == answered.answer)
    others = answered.turns[:final] + answered.turns[final + 1 :]
    # as in a stream; an answer that was given is not the model's thinking
    hidden = "\n\n".join(turn.text for turn in others if turn.finish_reason) or None
    return [
        Choice(
            index=index,
            message=AssistantMessage(content=end.answer, reasoning_content=hidden if alone else None),
            finish_reason=end.finish_reason,
            logprobs=None if end.logprobs is None else Logprobs(content=end.logprobs),
        )
        for index, end in enumerate([chosen] if alone else answered.ends)
    ]


def extra(answered: CorrectResponse) -> dict[str, Any]:
    """What OpenAI's protocol has no place for."""
    return answered.model_dump(exclude={"id", "question", "answer", "finish_reason", "usage"})


class Chunks:
    """The chunks of one streamed completion."""

    def __init__(
        self, request: ChatRequest, request_id: str, last_round: int | None, answers: Collection[str]
    ) -> None:
        self._request = request
        self._head = {"id": _id(request_id), "object": "chat.completion.chunk", "created": int(time.time())}
        self._model = request.model
        self._last_round, self._answers = last_round, answers
        self._begun = self._said = False
        self._hidden: tuple[str, int] | None = None

    def from_event(self, event: str, data: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks for an event of `Service.correct`; none for what a chat does not show."""
        if event == "start":
            again, self._model = self._begun, data["model_version"]  # on the next engine, if one died
            self._begun = True
            indexes = range(0 if again else self._request.n or 1)
            return [self._chunk({"role": "assistant", "content": ""}, index=index) for index in indexes]
        if event != "token" or self._last_round is None:  # which text is the answer is known at the end only
            return []
        if data["round"] == self._last_round and data["turn"] in self._answers:
            self._said = True
            return [self._chunk({"content": data["text"]})]
        turn = data["turn"], data["round"]  # a turn on the way: chat pages show it as the model's thinking
        seam = "\n\n" if self._hidden not in (None, turn) else ""
        self._hidden = turn
        return [self._chunk({"reasoning_content": seam + data["text"]})]

    def end(self, answered: CorrectResponse) -> list[dict[str, Any]]:
        """The chunks after the last token."""
        chunks = []
        for choice in _choices(self._request, answered):
            if not self._said:
                if self._hidden is None and (thinking := choice.message.reasoning_content):
                    chunks.append(self._chunk({"reasoning_content": thinking}, index=choice.index))
                chunks.append(self._chunk({"content": choice.message.content}, index=choice.index))
            logprobs = choice.logprobs and choice.logprobs.model_dump()
            chunks.append(self._chunk({}, choice.finish_reason, choice.index, logprobs))
        chunks[-1] |= {"stasc": extra(answered)}
        if self._request.stream_options and self._request.stream_options.include_usage:
            chunks.append(
                {**self._head, "model": self._model, "choices": [], "usage": answered.usage.model_dump()}
            )
        return chunks

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None = None, index: int = 0, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        return {**self._head, "model": self._model, "choices": [choice]}


def _id(request_id: str) -> str:
    return f"chatcmpl-{request_id}"
