"""Every schema that rests on disk: questions, traces, examples.

`FORMAT` stands in a run folder's config.json. A folder of another format is refused, never half understood.
"""

from collections.abc import Sequence

import pyarrow as pa

FORMAT = 4
"""1: eight parallel columns of answers and corrections. 2: one flat list of texts per question. 3: texts with
`answer_start`. 4: a checkpoint's interval in seconds."""

STRINGS = pa.list_(pa.string())

QUESTION_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "question": pa.string(),
        "answers": STRINGS,
        "split": pa.string(),
        "documents": STRINGS,
        "choices": STRINGS,
    }
)
"""One question. With choices, `answers` holds letters. A file may have further columns (`solution`,
`history`)."""

TEXT = pa.struct(
    {
        "turn": pa.string(),  # the recipe's name: answer, correction, verdict, ...
        "sample": pa.int32(),  # position among the samples of one prompt
        "parent": pa.int32(),  # index of the text that it follows; -1: none
        "writer": pa.string(),  # which model wrote it: base, iteration_01, ...
        "text": pa.string(),  # as generated, control tokens left out but for marks of reasoning
        "token_ids": pa.list_(pa.int32()),  # as generated, end of turn included
        "finish_reason": pa.string(),  # stop | length
        # of its prompt; 0 for the prompt's further samples, so that sums count it once
        "prompt_tokens": pa.int32(),
        "reward": pa.float64(),  # in [0, 1]; null: not graded
        "grader_error": pa.string(),  # the grader's failure; the reward is 0 then
        "answer_start": pa.int32(),  # characters of reasoning before the answer; the length: cut inside it
        "logprob": pa.float64(),  # sum over its tokens at temperature 1; null unless it was asked for
        "certainty": pa.float64(),  # self-certainty (generation.samples.Sample); null unless it was asked for
    }
)
"""One text that a model wrote."""

TEXTS = pa.list_(TEXT)


def trace_schema(questions: pa.Schema = QUESTION_SCHEMA) -> pa.Schema:
    """Schema of traces: the columns of their questions, `texts` and `error` (why texts lack; null if none
    does).
    """
    return pa.schema([*questions, ("texts", TEXTS), ("error", pa.string())])


PIECE = pa.struct(
    {"text": pa.string(), "token_ids": pa.list_(pa.int32()), "train": pa.bool_(), "cut": pa.bool_()}
)
MESSAGE = pa.struct(
    {"role": pa.string(), "content": pa.string(), "train": pa.bool_(), "pieces": pa.list_(PIECE)}
)
MESSAGES = pa.list_(MESSAGE)
EXAMPLE_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "class": pa.string(),
        "messages": MESSAGES,
        "rejected": MESSAGES,  # of a pair, the conversation that `messages` is preferred to; else null
        "weight": pa.float64(),  # of its loss, may be negative; null: 1
    }
)
"""One example. Loss falls on messages, and on pieces of an assistant's message, with `train`. Ids are
unique. Files of before have no `rejected` and no `weight`."""


def question_columns(names: Sequence[str]) -> list[str]:
    """Those of a trace file's columns that the question brought along."""
    return [name for name in names if name not in ("texts", "error")]


def text_columns(*fields: str) -> list[str]:
    """Names to read these fields of `texts` alone from a trace file: token ids are large."""
    return [f"texts.list.element.{name}" for name in fields]
