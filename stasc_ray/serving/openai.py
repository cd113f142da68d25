"""OpenAI's chat-completions protocol over `Service.correct`: the last user message asks, the correction
answers.
"""

import time
from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stasc_ray.serving.errors import ApiError, invalid
from stasc_ray.serving.published import LATEST
from stasc_ray.serving.schemas import CorrectRequest, CorrectResponse, Text, Usage


class Part(BaseModel):
    """A piece of a message; only text is understood."""

    model_config = ConfigDict(extra="ignore")
    type: str
    text: str | None = None


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: str
    content: str | list[Part] | None = None

    def as_text(self) -> str:
        """The content as one text.

        Raises:
            ApiError: 422, it holds something else than text.
        """
        if isinstance(self.content, list):
            if any(part.type != "text" or part.text is None for part in self.content):
                raise invalid("messages", "expected text only, found another kind of content")
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


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


class ChatRequest(BaseModel):
    """A chat completion. Fields of the protocol that are not listed are ignored."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [{"model": "latest", "messages": [{"role": "user", "content": "47+385+12"}]}]
        },
    )
    model: str = Field(LATEST, max_length=256, description="`latest` or a loaded version")
    messages: list[Message] = Field(
        min_length=1, max_length=1024, description="The last user message is the question; others are ignored"
    )
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, description="Only 1; stasc.samples votes over several")
    stop: str | list[str] | None = Field(
        None, description="The answer ends before the first of these; streams in one piece then"
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(None, description="Only false")
    tools: list[Any] | None = Field(None, description="Only empty")
    stasc: Correction = Field(default_factory=lambda: Correction.model_validate({}))

    def as_correct_request(self) -> CorrectRequest:
        """The same question for `Service.correct`.

        Raises:
            ApiError: 422, something that this endpoint cannot do; 404, a model that is no version's name.
        """
        if self.n not in (None, 1) or self.logprobs or self.tools:
            name = "logprobs" if self.logprobs else "tools" if self.tools else "n"
            raise invalid(name, f"{name}: not supported here; leave it out")
        question = next(
            (message.as_text() for message in reversed(self.messages) if message.role == "user"), ""
        )
        if not question.strip():
            raise invalid("messages", "expected a user message with text, found none")
        return CorrectRequest(
            question=question,
            rounds=self.stasc.rounds,
            policy=self.stasc.policy,
            samples=self.stasc.samples,
            documents=self.stasc.documents,
            choices=self.stasc.choices,
            initial_answer=self.stasc.initial_answer,
            stream=False,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            seed=None if self.seed is None else self.seed % 2**63,
            version=self.model,
        )

    def cut(self, text: str) -> tuple[str, bool]:
        """`text` up to the first stop string, and whether there was one."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        ends = [end for stop in stops if stop and (end := text.find(stop)) >= 0]
        return (text[: min(ends)], True) if ends else (text, False)


class AssistantMessage(BaseModel):
    """The corrected answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The only one."""

    index: int = 0
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatResponse(BaseModel):
    """A chat completion; `stasc` tells how the answer came about."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    stasc: dict[str, Any] = Field(
        description="initial_answer, corrections, changed, model_version, votes, timings_ms"
    )


def known_model(model: str, versions: list[str]) -> None:
    """Raises ApiError 404, as OpenAI does, for a model that was never published."""
    if model != LATEST and model not in versions:
        message = f"expected `latest` or a published version, found {model!r}; GET /v1/models lists them"
        raise ApiError(404, "not_found_error", message, "model")


def chat_response(request: ChatRequest, answered: CorrectResponse) -> ChatResponse:
    """The reply to a request without streaming."""
    answer, stopped = request.cut(answered.answer)
    return ChatResponse(
        id=_id(answered.id),
        created=int(time.time()),
        model=answered.model_version,
        choices=[
            Choice(
                message=AssistantMessage(content=answer),
                finish_reason="stop" if stopped else answered.finish_reason,
            )
        ],
        usage=answered.usage,
        stasc=extra(answered),
    )


def extra(answered: CorrectResponse) -> dict[str, Any]:
    """What OpenAI's protocol has no place for."""
    return answered.model_dump(
        include={"initial_answer", "corrections", "changed", "model_version", "votes", "timings_ms"}
    )


class Chunks:
    """The chunks of one streamed completion."""

    def __init__(
        self, request: ChatRequest, request_id: str, last_round: int | None, answers: Collection[str]
    ) -> None:
        self._request = request
        self._head = {"id": _id(request_id), "object": "chat.completion.chunk", "created": int(time.time())}
        self._model = request.model
        self._last_round, self._answers, self._said = last_round, answers, False
        # Which sample wins, and where a stop string cuts, is known at the end only.
        self._live = not request.stop and last_round is not None

    def from_event(self, event: str, data: dict[str, Any]) -> dict[str, Any] | None:
        """The chunk for an event of `Service.correct`; None for what a chat does not show."""
        if event == "start":
            self._model = data["model_version"]
            return self._chunk({"role": "assistant", "content": ""})
        is_last = data.get("round") == self._last_round and data.get("turn") in self._answers
        if event == "token" and self._live and is_last:
            self._said = True
            return self._chunk({"content": data["text"]})
        return None

    def end(self, answered: CorrectResponse) -> list[dict[str, Any]]:
        """The chunks after the last token."""
        answer, stopped = self._request.cut(answered.answer)
        chunks = [] if self._said else [self._chunk({"content": answer})]
        last = self._chunk({}, "stop" if stopped else answered.finish_reason) | {"stasc": extra(answered)}
        chunks.append(last)
        if self._request.stream_options and self._request.stream_options.include_usage:
            chunks.append(
                {**self._head, "model": self._model, "choices": [], "usage": answered.usage.model_dump()}
            )
        return chunks

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head, "model": self._model, "choices": [choice]}


def _id(request_id: str) -> str:
    return f"chatcmpl-{request_id}"
