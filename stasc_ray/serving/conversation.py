"""A chat's messages as a question in its context, so that no message is dropped without a word.

The last user message is the question. System texts and all other turns stand before it in every prompt that
the recipe asks; `in_context` puts them there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from stasc_ray.serving.errors import invalid
from stasc_ray.serving.schemas import ContextMessage
from stasc_ray.tasks.chat import Message

SYSTEM = ("system", "developer")


class Part(BaseModel):
    """A piece of a message; only text is understood."""

    model_config = ConfigDict(extra="ignore")
    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(BaseModel):
    """A message as OpenAI's protocol has it."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    refusal: str | None = None
    prefix: bool | None = None
    partial: bool | None = None

    def as_text(self) -> str:
        """What it says, as one text; calls of tools as JSON.

        Raises:
            ApiError: 400, it holds something else than text.
        """
        if isinstance(self.content, list):
            if any(part.type not in ("text", "refusal") for part in self.content):
                found = next(part.type for part in self.content if part.type not in ("text", "refusal"))
                raise invalid("messages", f"expected text only, found content of type {found!r}")
            said = "".join(part.text or part.refusal or "" for part in self.content)
        else:
            said = self.content or self.refusal or ""
        calls = [call.get("function", call) for call in self.tool_calls or []]
        calls += [self.function_call] if self.function_call else []
        return "\n".join([*([said] if said else []), *(f"Call: {json.dumps(call)}" for call in calls)])

    def as_context(self) -> ContextMessage:
        """It, as a message that a chat template knows: what a tool gave back is told by the user."""
        text = self.as_text()
        match self.role:
            case "system" | "developer":
                return ContextMessage(role="system", content=text)
            case "tool" | "function":
                what = f"Result of {self.name}" if self.name else "Result"
                return ContextMessage(role="user", content=f"{what}: {text}")
            case role:
                return ContextMessage(role=role, content=text)


@dataclass(frozen=True)
class Conversation:
    """What is asked, in which context, and the answer to correct if there is one."""

    question: str
    context: list[ContextMessage]
    initial_answer: str | None = None


def read(messages: Sequence[ChatMessage], *, correct_last: bool) -> Conversation:
    """The question of a chat.

    If the assistant or a tool has said something after the last user message, that message stands in the
    context too, where it was said, and is asked again: the reply is the assistant's next message.

    Args:
        correct_last: the assistant's last answer is to be corrected: its question is the user message before
            it. A user message after it, which asks for the check, is left out: the recipe's own words ask.

    Raises:
        ApiError: 400, there is no such question; or a message is to be continued.
    """
    if any(message.prefix or message.partial for message in messages):
        raise invalid("messages", "expected whole messages, found a `prefix`: no text is continued here")
    roles = [message.role for message in messages]
    if correct_last:
        end = len(roles) - 1 if roles[-1:] == ["user"] else len(roles)
        asked = messages[end - 2].as_text() if end >= 2 else ""
        if roles[max(0, end - 2) : end] != ["user", "assistant"] or not asked.strip():
            raise invalid(
                "stasc.correct_last",
                "expected messages that end with a user's question and the assistant's answer, and perhaps "
                f"one more of the user, found {', '.join(roles[-3:])}",
            )
        context = [message.as_context() for message in messages[: end - 2]]
        return Conversation(asked, context, messages[end - 1].as_text())
    last = max((place for place, role in enumerate(roles) if role == "user"), default=None)
    if last is None or not messages[last].as_text().strip():
        found = "none" if last is None else "an empty one"
        raise invalid("messages", f"expected a last user message with text, found {found}")
    answered = any(one.as_text().strip() for one in messages[last + 1 :] if one.role not in SYSTEM)
    others = messages if answered else [*messages[:last], *messages[last + 1 :]]
    return Conversation(messages[last].as_text(), [message.as_context() for message in others])


def in_context(messages: Sequence[Message], context: Sequence[ContextMessage]) -> list[dict[str, Any]]:
    """A recipe's messages with a conversation's context: system texts joined, earlier turns before its first.

    Templates want roles that take turns, so neighbours of one role become one message; a message without text
    says nothing and is left out.
    """
    own_system = [one for one in messages[:1] if one["role"] == "system"]
    said = [{"role": one.role, "content": one.content} for one in context if one.content.strip()]
    systems = [one for one in said if one["role"] == "system"]
    earlier = [one for one in said if one["role"] != "system"]
    joined: list[dict[str, Any]] = []
    every: list[Message] = [*own_system, *systems, *earlier, *messages[len(own_system) :]]
    for one in every:
        if joined and joined[-1]["role"] == one["role"] and "content" in one and "content" in joined[-1]:
            texts = [text for text in (joined[-1]["content"], one["content"]) if text.strip()]
            joined[-1] = {**one, "content": "\n\n".join(texts)}
        elif one["role"] != "system" or one["content"].strip():
            joined.append(dict(one))
    return joined
