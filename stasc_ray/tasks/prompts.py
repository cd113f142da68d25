"""Prompt wording: the one place where questions become messages. Pure.

Reads a Question row and the texts of `config.Prompts`; chat.py turns messages into token ids.

A correction conversation is, with strictly alternating roles after the optional system text:
system?, then per demonstration user / assistant / user / assistant, then user (documents, question, choices),
assistant (initial answer), user (correction prompt).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from stasc_ray.config import Demonstration, Prompts
from stasc_ray.tasks.chat import Message

_FIELD = re.compile(r"\{(question|choices|documents)\}")


def initial_messages(question_row: Mapping[str, Any], prompts: Prompts) -> list[Message]:
    """The conversation that asks for an initial answer (Y1); ends with a user turn."""
    messages = _system(prompts)
    for demonstration in prompts.initial_demonstrations:
        messages += _initial_turns(prompts, demonstration)
    return [*messages, user(_initial_text(question_row, prompts))]


def correction_messages(question_row: Mapping[str, Any], initial: str, prompts: Prompts) -> list[Message]:
    """The conversation that asks to correct `initial` (Y2); ends with a user turn. An empty `initial` is
    kept.
    """
    messages = _system(prompts)
    for demonstration in prompts.correction_demonstrations:
        request = _fill(prompts.correction, _fields({"question": demonstration.question}))
        messages += _initial_turns(prompts, demonstration)
        messages += [user(request), assistant(demonstration.correction or "")]
    request = _fill(prompts.correction, _fields(question_row))
    return [*messages, user(_initial_text(question_row, prompts)), assistant(initial), user(request)]


def _system(prompts: Prompts) -> list[Message]:
    return [{"role": "system", "content": prompts.system}] if prompts.system.strip() else []


def user(content: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant's message."""
    return {"role": "assistant", "content": content}


def _initial_turns(prompts: Prompts, demonstration: Demonstration) -> list[Message]:
    return [
        user(_initial_text({"question": demonstration.question}, prompts)),
        assistant(demonstration.initial),
    ]


def _initial_text(question_row: Mapping[str, Any], prompts: Prompts) -> str:
    """Documents, then the initial prompt; a text that places `{documents}` or `{choices}` itself is left to
    do so.
    """
    fields = _fields(question_row)
    question = fields["question"]
    if fields["choices"] and "{choices}" not in prompts.initial:
        question += _fill(prompts.choices, fields)
    text = _fill(prompts.initial, {**fields, "question": question})
    if fields["documents"] and "{documents}" not in prompts.initial:
        text = _fill(prompts.documents, fields) + text
    return text


def _fields(question_row: Mapping[str, Any]) -> dict[str, str]:
    choices = _texts(question_row.get("choices"))
    documents = _texts(question_row.get("documents"))
    return {
        "question": question_row["question"],
        "choices": "\n".join(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices)),
        "documents": "\n".join(f"[{i}] {document}" for i, document in enumerate(documents, start=1)),
    }


def _texts(column: Iterable[str] | None) -> list[str]:
    # Parquet gives None or a NumPy array, whose truth value is an error
    return [] if column is None else list(column)


def _fill(text: str, fields: Mapping[str, str]) -> str:
    """Replace the fields in one pass, so that braces inside a question stay what they are."""
    return _FIELD.sub(lambda match: fields[match.group(1)], text)
