"""Requests and responses of /v1/correct, /v1/models, /v1/run and the operating routes; OpenAI's shapes are in
openai.py.
"""

import contextlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, computed_field, model_validator

from stasc_ray.serving.errors import invalid

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
VersionName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
StopString = Annotated[str, StringConstraints(max_length=256)]
StopStrings = Annotated[list[StopString], Field(max_length=16)]
LogitBias = Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]
TopK = Annotated[int, Field(lt=2**31)]
"""vLLM's process is sent no larger number."""
MAX_SCHEMA = 1 << 16
"""Characters of a JSON schema."""


class ContextMessage(BaseModel):
    """What was said before the question."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


class JsonSchema(BaseModel):
    """A schema, as OpenAI's protocol has it; it is always followed strictly."""

    model_config = ConfigDict(extra="ignore", serialize_by_alias=True)
    schema_: dict[str, Any] = Field(alias="schema", description="JSON schema of the whole text")


class ResponseFormat(BaseModel):
    """How the final answer is to be written."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("expected json_schema with type json_schema, and with no other type")
        return self

    def as_schema(self) -> str | None:
        """The schema that the text follows, as JSON; None of plain text.

        Raises:
            ApiError: 400, it is too large.
        """
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.json_schema else {"type": "object"}
        with contextlib.suppress(RecursionError):  # nested deeper than Python writes
            if len(text := json.dumps(schema)) <= MAX_SCHEMA:
                return text
        message = f"expected a schema of at most {MAX_SCHEMA} characters that is not nested deeply"
        raise invalid("response_format", message)


class CorrectRequest(BaseModel):
    """A question, and how to answer and correct."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"question": "47+385+12", "temperature": 0}]}
    )

    question: Text = Field(description="Question text")
    context: list[ContextMessage] = Field(
        [], max_length=1024, description="Messages before the question; they stand in every prompt"
    )
    documents: list[str] = Field([], max_length=64, description="Texts the answer may use")
    choices: list[Text] = Field([], max_length=26, description="Choices; they are lettered A, B, ...")
    initial_answer: str | None = Field(
        None, description="An answer to correct; without one the model writes it"
    )
    rounds: int | None = Field(
        None,
        ge=0,
        description="Corrections in a row at most; 0 answers only; default: as measured",
    )
    policy: str | None = Field(
        None,
        max_length=64,
        description="How it is answered, one of `policies` of /v1/run; default: as it was measured",
    )
    samples: int = Field(
        1, ge=1, description="Independent answers, the commonest of which wins; needs a temperature above 0"
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 is greedy; default: the run's, per turn"
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Nucleus probability mass; default: the run's, per turn"
    )
    top_k: TopK | None = Field(None, ge=0, description="Likeliest tokens kept; 0 keeps all")
    min_p: float | None = Field(None, ge=0, le=1, description="Least probability, relative to the likeliest")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    max_tokens: int | None = Field(
        None, ge=1, description="New tokens per turn at most; default: the run's, per turn"
    )
    max_answer_tokens: int | None = Field(
        None, ge=1, description="The same for the turn that writes the final answer alone"
    )
    stop: StopStrings = Field([], description="The final answer ends before the first of these")
    response_format: ResponseFormat | None = Field(None, description="Of the final answer, as OpenAI's")
    logit_bias: LogitBias = Field({}, description="Of the final answer, by token id")
    logprobs: bool = Field(False, description="Whether `ends` have their tokens' log-probabilities")
    top_logprobs: int = Field(0, ge=0, le=20, description="Likeliest tokens beside each; needs logprobs")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Same seed, same version: same answers")
    version: VersionName | None = Field(
        None, description="A loaded version, else 409; default: the active one"
    )
    stream: bool = Field(False, description="Answer with server-sent events")


class CompletionDetails(BaseModel):
    """What the written tokens were for."""

    reasoning_tokens: int = Field(description="Of turns that are not the final answer")


class Usage(BaseModel):
    """Tokens over all turns and samples."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails


class Timings(BaseModel):
    """Milliseconds; both turns are the slowest sample's."""

    queue: float
    initial: float
    correction: float
    total: float


Finish = Literal["stop", "length"]
"""`length`: it was cut off at max_tokens."""
FINAL = (
    "What the answer comes to: the letter of a choice, else what follows the answer marker, else all of it"
)


class Vote(BaseModel):
    """Samples that ended in this answer, compared without case, punctuation and articles."""

    answer: str
    final_answer: str = Field(description=FINAL)
    votes: int | float = Field(description="How many, or the sum of the weights that the policy gives them")


class LikelyToken(BaseModel):
    """A token that could stand at a place, as OpenAI's protocol has it."""

    token: str
    logprob: float

    @computed_field
    @property
    def bytes(self) -> list[int]:
        """The token in UTF-8."""
        return list(self.token.encode())


class Token(LikelyToken):
    """A token that was written; `top_logprobs` are the likeliest at its place."""

    top_logprobs: list[LikelyToken]


class End(BaseModel):
    """The answer in which a sample ended."""

    answer: str
    final_answer: str = Field(description=FINAL)
    changed: bool = Field(description="Whether it differs from the sample's initial answer")
    finish_reason: Finish
    logprobs: list[Token] | None = Field(
        None, description="Of its tokens at temperature 1, before logit_bias and response_format"
    )


class Turn(BaseModel):
    """One text on the way to the answer; `turn` is the recipe's name: answer, verdict, correction."""

    turn: str
    text: str
    finish_reason: Finish | None = Field(description="None of an answer that was given")
    says_right: bool | None = Field(
        description="Of a verdict: whether it calls the answer before it right; None if it can't be read"
    )


class CorrectResponse(BaseModel):
    """How the model answered and how it corrected itself."""

    id: str
    question: str
    initial_answer: str = Field(description="First answer (Y1), or the one that was given")
    corrections: list[str] = Field(description="One text per round (Y2, ...)")
    answer: str = Field(description="The last correction, or the initial answer where rounds = 0")
    final_answer: str = Field(description=FINAL)
    turns: list[Turn] = Field(description="All texts that led to the answer, in order")
    changed: bool = Field(description="Whether the answer differs from the initial answer")
    finish_reason: Finish = Field(description="`length`: the answer was cut off at max_tokens")
    model_version: str = Field(description="The version that wrote all but what `initial_version` says")
    initial_version: str | None = Field(
        description="The version that wrote the initial answer, the base model's where it is trained to "
        "correct that; null: the answer was given"
    )
    ends: list[End] = Field(description="The answer in which each sample ended")
    votes: list[Vote] | None = Field(None, description="With samples > 1: the answers, most votes first")
    usage: Usage
    timings_ms: Timings


class ModelCard(BaseModel):
    """A published version, or `latest`."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time in seconds")
    owned_by: str
    stasc: dict[str, Any] = Field(description="loaded, active; for `latest` also which version it is")


class ModelList(BaseModel):
    """Every published version, and `latest`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class RunVersion(BaseModel):
    """A version and what it scored: mean reward of initial answers (r_y1) and corrections (r_y2); of the base
    model's answers where it writes them here.
    """

    version: str
    iteration: int
    created: str
    dev: dict[str, float]
    test: dict[str, float]
    loaded: bool
    active: bool
    latest: bool
    refused: str | None = Field(description="Why it is not served")


class RunSummary(BaseModel):
    """The run behind this endpoint."""

    name: str
    recipe: str
    variant: str
    policies: list[str] = Field(description="What `policy` may be")
    model: str
    preset: str = Field(description="prompts.preset: what kind of question it was trained on")
    initial_answers_from: Literal["base", "current"] = Field(
        description="Who writes the initial answers: the base model, or the version that corrects them"
    )
    active: str | None
    latest: str | None
    pinned: str | None
    versions: list[RunVersion]
    limits: dict[str, float]
    sampling: dict[str, dict[str, float]]


class ActivateRequest(BaseModel):
    """A version to pin every replica to, or `latest` to follow the run again."""

    model_config = ConfigDict(extra="forbid")
    version: VersionName


class ActivateResponse(BaseModel):
    """What every replica moves to; /healthz says when this one has."""

    pinned: str | None
    target: str


class Health(BaseModel):
    """State of the replica that answered."""

    status: Literal["ok", "no_engine"]
    replica: str
    active: str | None
    verified: str | None = Field(description="How the active version was verified")
    latest: str | None
    pinned: str | None
    loading: str | None = Field(description="Version that is being prepared")
    loaded: list[str]
    warm: list[str] = Field(
        description="Of these, previous versions that stay loaded (serve.keep_warm), and the base model's "
        "where it writes the initial answers"
    )
    refused: dict[str, str] = Field(description="Versions that are not served, and why")
    in_flight: int
    queued: int
    engine_starts: int = Field(description="Engines this replica has started")
    engine_pids: list[int] = Field(description="Processes of the loaded versions' engines")
    guarded: bool = Field(description="Whether Serve's proxy drops headers that would steer Serve itself")
    storage_problem: str | None = Field(description="Why the run folder cannot be read, if it cannot")
    keys_problem: str | None = Field(description="Why the file of keys cannot be read, if it cannot")


class Readiness(BaseModel):
    """Whether questions are answered now."""

    ready: bool
    version: str | None
    reason: str | None = None
    """What a replica that is not ready waits for."""
