"""The trace of a question: the texts that models wrote about it, each with the text that it follows.

A row on disk holds them as one flat list (store/rows.py). In memory a `Text` knows its parent. Pure.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stasc_ray.config import SamplingPerTurn
from stasc_ray.tasks import reasoning

ANSWER, VERDICT_TURN, CORRECTION = "answer", "verdict", "correction"
"""What recipes call their answers, verdicts and corrections."""

BASE = "base"
"""Writer of M0's texts."""


CUT_ADVICE = 0.1
"""Share of a turn's texts that were cut above which a person is advised to raise `max_tokens`."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token of a text and its log-probability; `likeliest` are the likeliest tokens at its place, with
    theirs.
    """

    token: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(eq=False)
class Text:
    """One text that a model wrote; fields as in `store.rows.TEXT`."""

    turn: str
    text: str
    """As generated, with its reasoning."""
    sample: int = 0
    parent: "Text | None" = None
    writer: str = BASE
    token_ids: Sequence[int] = ()
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    reward: float | None = None
    grader_error: str | None = None
    logprob: float | None = None
    certainty: float | None = None
    answer_start: int = 0
    seconds: float = field(default=0.0, repr=False)
    """How long its request took; not kept on disk, as all below."""
    tokens: Sequence[TokenLogprob] = field(default=(), repr=False)
    """If the request asked for them."""
    first_token_s: float | None = field(default=None, repr=False)
    token_s: float | None = field(default=None, repr=False)
    """As of the engine's sample."""

    @property
    def answer(self) -> str:
        """What follows the reasoning: what is graded, read and compared; "" if it was cut inside it."""
        return self.text[self.answer_start :]

    @property
    def answered(self) -> bool:
        """Whether it has an answer, if only an empty one: it was not cut inside its reasoning."""
        return not reasoning.unfinished(self.text, self.answer_start)

    @property
    def said(self) -> str:
        """The text as later prompts show it; "" if it never left the reasoning that its prompt had opened,
        which no mark in it tells.
        """
        return self.text if self.answered or reasoning.answer_start(self.text) else ""

    @property
    def cut(self) -> bool:
        """Whether it ended at `max_tokens` (or at the end of the context), not by its own end."""
        return self.finish_reason == "length"

    @property
    def lineage(self) -> list["Text"]:
        """The texts that lead to this one, the first answer first, itself last."""
        return [*(self.parent.lineage if self.parent else []), self]

    @property
    def graded(self) -> float:
        """Its reward; it was graded."""
        assert self.reward is not None, "graded traces only"
        return self.reward

    @property
    def root(self) -> "Text":
        """The answer that this text goes back to."""
        return self.parent.root if self.parent else self


def read_texts(row: Mapping[str, Any]) -> list[Text]:
    """The texts of a row. Fields that were not read from the file keep their defaults.

    Raises:
        ValueError: a text that follows none before it.
    """
    found: list[Text] = []
    for values in row["texts"] or ():
        parent = values["parent"]
        if parent >= len(found):
            raise ValueError(
                f"question {row.get('id')!r}: expected each text to follow one before it, found text "
                f"{len(found)} after text {parent}; restore the file, or delete _COMMITTED.json beside it, "
                "and the same command makes it again"
            )
        kept = {name: value for name, value in values.items() if name != "parent" and value is not None}
        found.append(Text(**kept, parent=found[parent] if parent >= 0 else None))
    return found


def write_texts(texts: Sequence[Text]) -> list[dict[str, Any]]:
    """The flat list of a row: roots first, then level by level, samples in order, whatever order they came
    in.
    """
    ordered: list[Text] = []
    level: list[Text | None] = [None]
    while level:
        following: list[Text | None] = []
        for parent in level:
            children = [text for text in texts if text.parent is parent]
            following += sorted(children, key=lambda text: (text.writer != BASE, text.turn, text.sample))
        ordered += [text for text in following if text]
        level = following
    place = {id(text): number for number, text in enumerate(ordered)}
    return [
        {
            "turn": text.turn,
            "sample": text.sample,
            "parent": place[id(text.parent)] if text.parent else -1,
            "writer": text.writer,
            "text": text.text,
            "token_ids": list(text.token_ids),
            "finish_reason": text.finish_reason,
            "prompt_tokens": text.prompt_tokens,
            "reward": text.reward,
            "grader_error": text.grader_error,
            "logprob": text.logprob,
            "certainty": text.certainty,
            "answer_start": text.answer_start,
        }
        for text in ordered
    ]


def roots(texts: Sequence[Text], writer: str | None = None) -> list[Text]:
    """The first answers, all of them or those of one writer."""
    return [text for text in texts if text.parent is None and writer in (None, text.writer)]


def finals(
    texts: Sequence[Text], root: Text, answers: Collection[str], rounds: int | None = None
) -> Iterator[Text]:
    """The answers that a root ended in: of every chain below it the last text that is an answer.

    Args:
        answers: turns whose texts are answers (a verdict is none).
        rounds: stop after that many corrections in a row; None: as many as there are.
    """
    candidates = [text for text in texts if text.turn in answers and text.root is root]
    if rounds is not None:
        candidates = [text for text in candidates if depth(text, answers) <= rounds]
    followed = {id(earlier) for text in candidates for earlier in text.lineage[:-1]}
    yield from (text for text in candidates if id(text) not in followed)


def depth(text: Text, answers: Collection[str]) -> int:
    """How many answers come before a text in its chain: 0 for a first answer, 1 for its correction."""
    return sum(earlier.turn in answers for earlier in text.lineage[:-1])


def corrections(texts: Sequence[Text], root: Text) -> list[Text]:
    """The corrections that follow a first answer directly, in the order of their samples."""
    return [text for text in texts if text.parent is root and text.turn == CORRECTION]


def grade(
    texts: Sequence[Text],
    answers: Collection[str],
    reward: Callable[[str], tuple[float, str | None]],
    verdicts: Collection[str],
    says_right: Callable[[str], bool | None],
    threshold: float,
) -> None:
    """Fill in rewards: answers by `reward`, verdicts by whether they agree with the reward of what they
    judge.

    Args:
        answers: turns whose texts are answers.
        reward: gives (reward, the grader's failure).
        verdicts: turns whose texts are verdicts; other turns are not graded.
        says_right: reads a verdict; None if it can't be read.
        threshold: reward from which an answer is right.
    """
    for text in texts:
        if text.turn in answers:
            text.reward, text.grader_error = reward(text.answer) if text.answered else (0.0, None)
    for text in texts:
        if text.turn in verdicts and text.parent and text.parent.reward is not None:
            said = says_right(text.answer)
            text.reward = float(said is not None and said == (text.parent.reward >= threshold))


def cut_advice(turn: str, share: float, sampling: SamplingPerTurn) -> str | None:
    """What to do about a share of a turn's texts that were cut at `max_tokens`; None if it is small."""
    if share <= CUT_ADVICE:
        return None
    name = "initial" if turn == ANSWER else "correction"
    limit = getattr(sampling, name).max_tokens
    return (
        f"{share:.0%} of the {turn}s were cut at sampling.{name}.max_tokens = {limit}: raise it, or ask for "
        "shorter texts. Texts that were cut are not learnt unless algorithm.keep_truncated says so"
    )
