"""The configuration of a run: one frozen pydantic tree.

Reads TOML files and dotted overrides (`finetune.learning_rate=1e-5`), is written back as JSON into the run
folder. Importable without Ray, torch, vLLM or transformers. Humans write TOML, machines write JSON.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializeAsAny,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
IsoDate = Annotated[str, BeforeValidator(lambda value: date.fromisoformat(str(value)).isoformat())]
Phrase = Annotated[str, Field(pattern=r"\S")]
"""Text that is more than blanks."""
ColumnPath = str | tuple[str, ...]


@dataclass(frozen=True)
class OnResume:
    """Mark of a field, or of a whole section, that a resumed run may have otherwise than it began with.

    A field without a mark is part of what the run is: another value would make its folder a mix of two runs.
    """

    rule: str
    """What a resumed run may do, in words."""


OPERATIONAL = OnResume("may differ")
"""Says how a run is carried out, or only what is done with results that are there."""
MAY_GROW = OnResume("may grow")
"""Says how much of the run there is: more of it goes on from what is committed."""


class Section(BaseModel):
    """What every section shares: unknown keys are errors, values never change, docstrings become
    descriptions.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


class Model(Section):
    """The base model M0."""

    path: str = "sandbox"
    """Hugging Face folder, Hub id, `.gguf` file (converted once into the run's folder), or `sandbox` for the
    tiny model that ships with the package."""
    revision: str | None = None
    """Hub revision (branch, tag or commit); only used with a Hub id."""
    trust_remote_code: bool = False
    """Whether code from the model repository may run."""
    chat_template_kwargs: dict[str, Any] = {}
    """Words for the chat template in every rendering, such as `enable_thinking = false` or
    `reasoning_effort = "low"`."""
    template_date: IsoDate = "2026-01-01"
    """Date, YYYY-MM-DD, for templates that write today's: a run's prompts must not change over night."""


class Columns(Section):
    """Which columns of the source hold what. A column is a path, `answer.aliases` or `paragraphs[].text`, or
    a list of paths.
    """

    question: ColumnPath = "question"
    """Column with the question text; the texts of several are joined with a space."""
    answers: ColumnPath = "answers"
    """Column with the reference answer, a list of them, or (with choices) the index, label, letter or text of
    the right choice."""
    id: ColumnPath | None = None
    """Column with a unique id; without one the id is a hash of question and answers."""
    choices: ColumnPath | None = None
    """Column with the choices of a multiple-choice question: a list, {label, text}, an object by letter, or
    `A) x B) y`; several columns are one choice each."""
    documents: ColumnPath | None = None
    """Column with the list of documents an open-book question may use: texts, {title, text}, or [title,
    sentences]."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer inside the answers column (GSM8K:
    `####\\s*(.+)`)."""
    choice_key: Literal["any", "index", "index_from_1", "letter", "text"] = "any"
    """What the answers column names a choice by; `any`: what fits one choice only. A row that fits several is
    a bad row."""
    no_answer: str | None = None
    """Reference of a question that has none, such as `unanswerable`; None: it is a bad row."""
    one_answer: bool = False
    """Whether a row with several different references is a bad row: they may be the parts of one answer."""
    decode_lists: bool = True
    """Whether a list of texts that was written as text (`["a", "b"]`) is a list of references; `[1, 2]` stays
    text."""
    rows: str | None = None
    """Path of the rows inside the objects of a JSON file: `data[].paragraphs[].qas[]`; `*` takes every value
    of an object."""


DATASETS: tuple[str, ...] = tuple(
    sorted(
        file.name.removesuffix(".toml")
        for file in resources.files("stasc_ray.config").joinpath("datasets").iterdir()
        if file.name.endswith(".toml")
    )
)
"""Names of the shipped datasets: of the files in datasets/."""


@cache
def dataset(name: str) -> dict[str, Any]:
    """A shipped dataset's file `datasets/NAME.toml`.

    It holds `columns`, and `suits`, the overrides that suit it, and may hold `title`, `licence`, `source` (a
    URL that documents the shape), `hub` = {id, config} and `splits` = {train, dev, test} as published.

    Raises:
        ValueError: no such dataset ships.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else f"expected one of {', '.join(DATASETS)}."
        )
        raise ValueError(
            f"questions.preset: {hint} `stasc datasets` lists what ships; for other data leave the preset "
            f"out and name the columns under questions.columns. Found {name!r}"
        )
    file = resources.files("stasc_ray.config") / "datasets" / f"{name}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


class Split(Section):
    """Where one split's questions come from."""

    source: str | None = None
    """JSONL or Parquet file, folder, glob or fsspec URL, a Hub dataset id, or `sandbox`. None: carved from
    train's source."""
    split: str | None = None
    """Split name in a Hub dataset, or value of a `split` column in a file; None: the published split where
    the source is the preset's Hub dataset, else every row."""
    limit: PositiveInt | None = None
    """Number of questions to take, chosen by seed; None takes all. Required for a split that is carved from
    train's source."""


class Questions(Section):
    """The questions: where they are, how to read them, how to split them."""

    preset: str = "canonical"
    """Columns of a known dataset (`stasc datasets` lists them); `columns` overrides single fields."""
    columns: Columns = Columns()
    """Column mapping, filled from the preset where not given."""
    hub_config: str | None = None
    """Configuration name of a Hub dataset (for gsm8k: `main`)."""
    train: Split = Split(source="sandbox", limit=1000)
    """Questions the model learns on."""
    dev: Split = Split(limit=200)
    """Questions that choose the published version."""
    test: Split = Split(limit=500)
    """Questions that are only measured."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """What an unusable row does: stop with file and line number, or be counted and left out."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity of word 3-grams from which a train question is near one of dev or test. Those are
    counted and shown."""
    on_near_duplicate: Literal["keep", "drop"] = "keep"
    """What becomes of train questions that are near one of dev or test, or equal but for punctuation, case
    and articles."""
    corpus: str | None = None
    """Documents for questions that have none, found by BM25: a file, folder, URL or Hub dataset id; needs the
    extra `bm25`."""
    corpus_text: ColumnPath = "text"
    """Column of the corpus with the text; the texts of several, such as title and text, are joined with a
    space."""
    top_k: PositiveInt = 5
    """Documents per question from `corpus`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        preset = values.get("preset", "canonical") if isinstance(values, dict) else None
        if not isinstance(preset, str):
            return values
        known = dataset(preset)
        if isinstance(values.get("columns", {}), Mapping):
            values = {**values, "columns": {**known["columns"], **values.get("columns", {})}}
        return _fill_from_hub(values, known)


def _fill_from_hub(values: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration and split names as published, where a split's source is the preset's Hub dataset."""
    hub = known.get("hub", {})
    found = dict(values)
    for name, published in known.get("splits", {}).items():
        split = values.get(name)
        if isinstance(split, Mapping) and split.get("source") == hub.get("id", ...):
            found[name] = {"split": published, **split}
            if hub.get("config") is not None:
                found.setdefault("hub_config", hub["config"])
    return found


class Demonstration(Section):
    """One worked example shown before the question (few-shot)."""

    question: str
    """Question text."""
    initial: str
    """Initial answer as the model should write it."""
    correction: str | None = None
    """Correction of that initial answer; required in `correction_demonstrations`."""


class PolicyPrompts(Section):
    """User turns of the answering policies (stasc_ray/recipes/policies.py). Fields in braces are replaced."""

    step_by_step: str = "Let's think step by step."
    """Follows the question in `chain_of_thought` (arXiv 2205.11916)."""
    critique: Phrase = "Review your previous answer and find problems with your answer."
    """Asks for the critique of `rci` (arXiv 2303.17491)."""
    improve: Phrase = "Based on the problems you found, improve your answer. Write in the same form."
    """Asks for the correction of `rci`."""
    feedback: Phrase = (
        "Give feedback on your answer: check each step and say what is wrong with it. If nothing is wrong, "
        "end with: It is correct."
    )
    """Asks for the critique of `self_refine` (arXiv 2303.17651)."""
    is_correct: Phrase = "It is correct."
    """How a critique of `self_refine` ends that stops it."""
    refine: Phrase = "Use the feedback to give a better answer. Write in the same form."
    """Asks for the correction of `self_refine`."""
    checks: Phrase = "Write short questions that check the facts in your answer, each on its own line."
    """Asks for the questions of `chain_of_verification` (arXiv 2309.11495)."""
    findings: Phrase = "Answer each of these questions in one line.\n\n{checks}"
    """Asks to answer them, in a conversation without the answer."""
    verified: Phrase = (
        "Some facts in your answer were checked:\n\n{checks}\n\n{findings}\n\nCorrect your answer if they "
        "contradict it. Write in the same form."
    )
    """Asks for the correction that sees them."""
    debate: Phrase = (
        "Others gave these answers:\n\n{others}\n\nTake them as advice and give your updated answer. Write "
        "in the same form."
    )
    """Asks for a round of `debate` (arXiv 2305.14325)."""
    deepen: Phrase = "Go on. Check what you have so far, and end with the answer in the same form."
    """Follows a text that was cut, in `deepening` (arXiv 2502.05449)."""
    verdict: Phrase = "Is your answer right? End with: My answer is right. Or: My answer is wrong."
    """Asks for a verdict if the recipe has none."""
    says_right: Phrase = "My answer is right."
    """How a verdict ends that calls the answer right."""
    says_wrong: Phrase = "My answer is wrong."
    """How a verdict ends that calls the answer wrong."""


class Prompts(Section):
    """Prompt texts. `{question}`, `{choices}` and `{documents}` are replaced; everything else is literal."""

    preset: Literal["qa", "math", "choice", "sandbox"] = "qa"
    """Which shipped texts fill the fields that are not given (see stasc_ray/config/prompts/)."""
    system: str = ""
    """System text; empty for none. Goes into the first user turn for chat templates without a system role."""
    initial: str = "{question}"
    """User turn that asks for the initial answer."""
    correction: str = ""
    """User turn that asks to correct the initial answer if it is incorrect."""
    documents: str = "Documents:\n{documents}\n\n"
    """How documents are put before the initial user turn, when the question has any."""
    choices: str = "\n{choices}"
    """How lettered choices are put after the question text, when it has any."""
    answer_marker: str = "Final Answer:"
    """Text before the final answer; the last occurrence counts when grading `after_marker`."""
    marker_unasked: bool = False
    """Whether the model writes the marker although no prompt asks for it; else a run that grades by it is
    refused."""
    initial_demonstrations: tuple[Demonstration, ...] = ()
    """Few-shot examples in the initial turn's prompt."""
    correction_demonstrations: tuple[Demonstration, ...] = ()
    """Few-shot examples (initial and correction) in the correction turn's prompt."""
    keep_reasoning: bool | None = None
    """Whether the reasoning of an earlier answer stays in the prompt; None: as the chat template does with
    earlier turns."""
    policies: PolicyPrompts = PolicyPrompts()
    """Texts of the ways to answer that ask for more than answers and corrections."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        preset = values.get("preset", "qa") if isinstance(values, dict) else None
        path = resources.files("stasc_ray.config") / "prompts" / f"{preset}.toml"
        if isinstance(preset, str) and preset.isalnum() and path.is_file():
            return {**tomllib.loads(path.read_text(encoding="utf-8")), **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{question}" not in self.initial:
            raise ValueError("prompts.initial must contain {question}")
        if not self.correction.strip():
            raise ValueError("prompts.correction must not be empty: it asks the model to correct its answer")
        if any(demonstration.correction is None for demonstration in self.correction_demonstrations):
            raise ValueError("every entry of prompts.correction_demonstrations needs a `correction`")
        return self


class Reward(Section):
    """How an answer is graded."""

    name: str = "in_accuracy"
    """`in_accuracy`, `exact_match`, `f1`, `math`, `choice`, `squad_em`, `squad_f1`, or a dotted path
    `package.module:function`."""
    scope: Literal["whole_text", "after_marker"] = "whole_text"
    """Grade the whole generation, or the line (or box) that follows the last `prompts.answer_marker`."""
    example: str | None = None
    """How a right answer is written, with `{answer}` for the reference; None: bare, or after the marker."""
    max_answer_words: PositiveInt | None = None
    """Graded texts of more words have reward 0: long ones please `in_accuracy` easily; unset: no limit."""
    rehearse: bool = True
    """Whether a run first tries that the reward pays the references as answers, and wrong ones less."""
    timeout_s: PositiveFloat = 5.0
    """Seconds one answer may take to grade before it counts as a grader error (reward 0); used by `math`."""
    max_error_fraction: Annotated[Fraction, OPERATIONAL] = 0.05
    """Share of answers whose reward may fail with an error; above it the run stops with that error."""


class Engine(Section):
    """The vLLM engines and the actors that hold them."""

    actors: Annotated[PositiveInt | Literal["all"] | tuple[PositiveInt, PositiveInt], OPERATIONAL] = 1
    """Number of actors, one engine each; `all`: as many as the running nodes have room for; `[min, max]`:
    grows with the work."""
    device: Annotated[Literal["auto", "cpu", "cuda"], OPERATIONAL] = "auto"
    """Where engines and training run; `auto` takes CUDA when Ray sees a GPU."""
    reserve_gpus: Annotated[bool, OPERATIONAL] = False
    """With `device = "cpu"`, GPUs are reserved as on CUDA: to try GPU scheduling where they are only
    declared."""
    tensor_parallel_size: Annotated[PositiveInt, OPERATIONAL] = 1
    """GPUs per engine."""
    keep_alive: Annotated[bool, OPERATIONAL] = True
    """Whether engines outlive a pass and take each iteration's weights over in place, where the cluster has
    room for them beside the trainer; else each pass starts its own."""
    cpus_per_actor: Annotated[PositiveInt, OPERATIONAL] = 1
    """CPUs that Ray reserves for each actor."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights in the engine; `auto`: bfloat16 on CUDA, float32 on CPU."""
    max_model_len_tokens: PositiveInt = 2048
    """Longest prompt plus output, in tokens."""
    max_num_seqs: Annotated[PositiveInt, OPERATIONAL] = 256
    """Sequences in one engine step at most."""
    max_num_batched_tokens: Annotated[PositiveInt, OPERATIONAL] = 8192
    """Tokens in one engine step at most."""
    gpu_memory_utilization: Annotated[Fraction, OPERATIONAL] = 0.9
    """Share of GPU memory the engine may take; unused on CPU."""
    kv_cache_gb: Annotated[PositiveFloat, OPERATIONAL] = 1.0
    """KV cache per engine on CPU, in GiB; unused on CUDA."""
    enforce_eager: Annotated[bool, OPERATIONAL] = False
    """Skip CUDA graphs (slower, starts sooner); unused on CPU."""
    batch_size: PositiveInt = 32
    """Questions in one unit of work, which is committed at once; more where a split would have over 4,096
    units. Cut once, when a run begins."""
    concurrent_batches: Annotated[PositiveInt, OPERATIONAL] = 4
    """Batches in flight per actor, so that an engine never idles at a batch boundary."""
    start_timeout_s: Annotated[PositiveFloat, OPERATIONAL] = 900.0
    """Seconds until every actor must be up."""
    max_error_fraction: Annotated[Fraction, OPERATIONAL] = 0.05
    """Share of rows with an error above which the run stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.actors, tuple) and self.actors[0] > self.actors[1]:
            raise ValueError(f"engine.actors: expected [min, max] with min <= max, found {list(self.actors)}")
        return self

    @property
    def least_actors(self) -> int:
        """How many actors generation needs at least."""
        if isinstance(self.actors, tuple):
            return self.actors[0]
        return 1 if self.actors == "all" else self.actors


class Sampling(Section):
    """Sampling values of one turn; all are passed to vLLM explicitly."""

    temperature: NonNegativeFloat = 0.6
    """Softmax temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus probability mass."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Most likely tokens kept; 0 keeps all."""
    min_p: Fraction = 0.0
    """Least probability, relative to the likeliest token."""
    repetition_penalty: PositiveFloat = 1.0
    """Penalty on tokens already present; 1 is none."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken from the logits of tokens that were written already."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """The same, for each time that they were."""
    max_tokens: PositiveInt = 256
    """New tokens at most."""


class SamplingPerTurn(Section):
    """Sampling of first answers, and of every other turn."""

    initial: Sampling = Sampling()
    """Initial answers (Y1)."""
    correction: Sampling = Sampling()
    """Corrections (Y2), and any other turn that a recipe asks."""


class Algorithm(Section):
    """The loop: what every recipe has. Each recipe's section adds its words (stasc_ray/recipes/)."""

    recipe: str = "stasc"
    """Self-correction method: a recipe that ships (docs/methods.md), or a dotted path
    `package.module:RECIPE`."""
    iterations: Annotated[int, Field(ge=0), MAY_GROW] = 4
    """N: how often the loop runs; 0 only measures the model."""
    initial_answers_from: Literal["base", "current"] = "current"
    """Who writes the initial answers: M0 (Fixed, F) or M_{n-1} (Evolving, E). First letter of the variant."""
    finetune_from: Literal["base", "current"] = "base"
    """Where each fine-tune starts: M0 (Fixed, F) or M_{n-1} (Evolving, E). Third letter of the variant."""
    n_initial: PositiveInt = 1
    """N_init: initial answers per train question."""
    n_corrections: Annotated[int, Field(ge=0)] = 0
    """N_corr: corrections per initial answer."""
    max_examples_per_question: PositiveInt | None = None
    """Kept examples per question at most; None keeps all."""
    keep_truncated: bool = False
    """Whether texts that were cut at `max_tokens` are learnt too, without an end of turn."""
    threshold: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """t: the reward from which an answer counts as correct."""

    @property
    def variant(self) -> str:
        """Who writes the initial answers and where fine-tuning starts, as the paper's letters F and E."""
        letter = {"current": "E", "base": "F"}
        return letter[self.initial_answers_from] + letter[self.finetune_from]


class Lora(Section):
    """Low-rank adapters (peft)."""

    rank: Annotated[int, Field(gt=0, le=512)] = 16
    """Rank r; vLLM serves adapters of at most 512."""
    alpha: PositiveFloat = 32.0
    """Scale; the update is multiplied by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout on the adapter's input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Module names that get an adapter."""


class Dpo(Section):
    """Direct preference optimization (arXiv 2305.18290), for recipes that learn pairs."""

    beta: PositiveFloat = 0.1
    """How strongly the model is held to the weights that it starts from; smaller: it may go further."""
    sft_weight: NonNegativeFloat = 0.0
    """Weight of the chosen text's loss per token, added to each pair's; 0: none."""
    length_normalized: bool = False
    """Whether log-probabilities count per token; `beta` is of the order of 1 to 10 then."""


class Finetune(Section):
    """One iteration's fine-tune on the kept examples (Ray Train)."""

    method: Literal["full", "lora"] = "full"
    """Train all weights, or an adapter that is merged (in float32) at export."""
    lora: Lora = Lora()
    """Adapter settings, used with `method = "lora"`."""
    dpo: Dpo = Dpo()
    """Used by recipes whose objective is `dpo`."""
    workers: Annotated[PositiveInt | tuple[PositiveInt, PositiveInt], OPERATIONAL] = 1
    """Ray Train workers, one GPU each on CUDA, FSDP2 between them; `[min, max]`: as many as there is room
    for."""
    sharding: Annotated[Literal["full", "hybrid"], OPERATIONAL] = "full"
    """How several workers share the model; `hybrid`: shards in a node, replicas across nodes (less traffic,
    more memory)."""
    learning_rate: PositiveFloat = 7e-6
    """Peak learning rate of AdamW."""
    batch_size: PositiveInt = 8
    """Examples (pairs with `dpo`) per optimizer step over all workers together."""
    epochs: PositiveInt = 1
    """Passes over the kept examples per iteration."""
    trained_tokens: PositiveInt | None = None
    """Tokens to train on per iteration, instead of `epochs`: the examples come again, or are left out, until
    there are that many. Compares methods at equal cost."""
    weight_decay: NonNegativeFloat = 0.1
    """AdamW weight decay."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Learning-rate decay to 0 after the warm-up."""
    warmup_fraction: Fraction = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this global norm."""
    max_length_tokens: PositiveInt = 2048
    """Length of one example, or of each side of a pair; a longer one is left out and counted."""
    pack_tokens: Annotated[PositiveInt, OPERATIONAL] = 16_384
    """Tokens of one packed forward pass on CUDA with variable-length attention, or one example if that is
    longer; `max_length_tokens` where a pass pays for attention between examples."""
    packing: bool = True
    """Several examples in one forward pass: on CUDA in one sequence if the model keeps them apart (measured
    before step 1); else side by side. The loss is the same."""
    gradient_checkpointing: Annotated[bool, OPERATIONAL] = False
    """Recompute activations in the backward pass: less memory, more time."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Computation type; `auto`: bfloat16 autocast on CUDA, float32 on CPU. Master weights are float32."""
    checkpoint_every_s: Annotated[PositiveFloat, OPERATIONAL] = 600.0
    """Seconds of training between checkpoints, from which a dead worker resumes; there is one after the last
    step too. A very small number: after every step (on CUDA, every group of steps)."""
    max_failures: Annotated[int, Field(ge=0), OPERATIONAL] = 2
    """Times the workers may die and be started again in one fine-tune."""
    start_timeout_s: Annotated[PositiveFloat, OPERATIONAL] = 900.0
    """Seconds until every worker must be up; with `[min, max]` training waits for the least number without a
    limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(
                f"finetune.workers: expected [min, max] with min <= max, found {list(self.workers)}"
            )
        if self.most_workers > self.batch_size:
            raise ValueError(
                f"finetune.workers: expected at most finetune.batch_size = {self.batch_size} workers, so "
                f"that each has an example in every step, found {self.most_workers}; lower it or raise "
                "finetune.batch_size"
            )
        return self

    @property
    def least_workers(self) -> int:
        """How many workers a fine-tune needs at least."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most_workers(self) -> int:
        """How many workers a fine-tune takes at most."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers


class Evaluation(Section):
    """How each model is measured on dev and test."""

    samples: PositiveInt = 1
    """Initial answers per question, each with one correction."""
    policy: str | None = None
    """How questions are answered, by name (docs/methods.md lists the policies); None: as the recipe says."""
    rounds: PositiveInt = 1
    """Corrections in a row at most, each of the answer before."""
    greedy: bool = False
    """Temperature 0 in both turns instead of `sampling`; needs `samples = 1`."""
    bootstrap_samples: Annotated[PositiveInt, OPERATIONAL] = 1000
    """Resamples of the questions behind each 95% interval."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.greedy and self.samples > 1:
            raise ValueError(
                f"evaluation.greedy gives the same answer each time: expected samples = 1, found "
                f"{self.samples}"
            )
        return self


class Publish(Section):
    """When LATEST moves to a new version."""

    when: Literal["dev_improves", "dev_improves_surely", "always"] = "dev_improves"
    """`dev_improves`: only to the best on dev so far (the recipe's measure); `dev_improves_surely`: only to
    one that is better on dev than LATEST's version with `min_probability`; `always`: each iteration."""
    min_probability: Annotated[float, Field(ge=0.5, le=1.0)] = 0.9
    """With `dev_improves_surely`: the least probability of a gain, by a bootstrap over the dev questions that
    keeps both models' answers to a question together."""


class Serve(Section):
    """How a run is served over HTTP (`stasc serve`). Limits hold per replica."""

    replicas: PositiveInt = 1
    """Replicas, one engine each; with `max_replicas` the least number."""
    max_replicas: PositiveInt | None = None
    """Most replicas that load may bring; None keeps `replicas`."""
    target_in_flight: PositiveFloat = 16.0
    """Questions in flight per replica that autoscaling aims at."""
    cpus_per_replica: NonNegativeFloat = 1.0
    """CPUs that Ray reserves for a replica and its engine."""
    gpus_per_engine: PositiveFloat | None = None
    """GPUs that Ray reserves per engine; None: `engine.tensor_parallel_size`. 0.5 lets two versions share one
    GPU."""
    swap: Literal["beside", "in_place"] = "beside"
    """`beside`: a new version gets an engine of its own, the old one answers until it is up. `in_place`: one
    engine; requests wait while its weights are exchanged, or, where the canary finds that this went wrong,
    while a new engine starts."""
    keep_warm: Annotated[int, Field(ge=0, le=6)] = 0
    """Previous versions that stay loaded, so that a way back to them starts no engine. Costs the memory of an
    engine each, with LoRA next to nothing; not with `in_place` and full weights."""
    initial_answers_from: Literal["base", "current"] | None = None
    """Who writes the initial answers: M0, or the version that corrects them; None: as it was trained
    (`algorithm.initial_answers_from`). M0 needs an engine of its own unless the versions are adapters on
    it."""
    poll_s: Annotated[PositiveFloat, Field(le=20)] = 2.0
    """Seconds between two looks at LATEST."""
    canary_tolerance: PositiveFloat | None = None
    """Mean absolute difference of log-probabilities up to which a version is served; None: 0.01, or 0.1 for
    16-bit engines."""
    max_in_flight: PositiveInt = 64
    """Samples of questions that are worked on at once."""
    max_queue: Annotated[int, Field(ge=0)] = 128
    """Questions that wait for a place; one more gets 429."""
    max_body_kb: PositiveInt = 1024
    """Size of a request's body in KiB; more gets 413."""
    body_timeout_s: PositiveFloat = 10.0
    """Seconds from a request's headers to the end of its body; then 408."""
    max_prompt_tokens: PositiveInt | None = None
    """Tokens of one turn's prompt; more gets 400. None: what `engine.max_model_len_tokens` leaves room
    for."""
    max_output_tokens: PositiveInt = 1024
    """Largest `max_tokens` that a request may ask for; more gets 400."""
    max_rounds: PositiveInt = 8
    """Largest `rounds` that a request may ask for."""
    max_samples: PositiveInt = 16
    """Largest `samples` that a request may ask for."""
    request_timeout_s: PositiveFloat = 60.0
    """Seconds from arrival to the last token, queueing included; then 504, and the engine stops working on
    it."""
    grace_s: PositiveFloat | None = None
    """Seconds that requests in flight get to finish when a replica stops; None: `request_timeout_s`, and less
    than that is refused."""
    log_texts: bool = False
    """Whether questions and answers go into the log."""

    @property
    def grace(self) -> float:
        """`grace_s`, or what it stands for."""
        return self.request_timeout_s if self.grace_s is None else self.grace_s

    @model_validator(mode="after")
    def _check_grace(self) -> Self:
        if self.grace < self.request_timeout_s:
            raise ValueError(
                f"grace_s: expected at least request_timeout_s = {self.request_timeout_s:g}, found "
                f"{self.grace_s:g}: a replica that stops would cut requests off; raise it, or leave it out"
            )
        return self


class Tracking(Section):
    """Where metrics go besides metrics.jsonl; each needs its optional dependency."""

    tensorboard: bool = False
    """Write TensorBoard event files into the run folder."""
    mlflow: bool = False
    """Log to MLflow (set MLFLOW_TRACKING_URI)."""
    wandb: bool = False
    """Log to Weights & Biases (set WANDB_API_KEY or WANDB_MODE=offline)."""


class Config(Section):
    """Everything a run depends on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), OPERATIONAL] = "run"
    """Name of the run, and of its folder under `storage`."""
    storage: Annotated[str, OPERATIONAL] = "runs"
    """Folder that holds runs; on a cluster a path that every node sees (NFS, Lustre, FSx, a mounted
    bucket)."""
    seed: int = 0
    """Seed of everything that is random."""
    model: Model = Model()
    questions: Questions = Questions()
    prompts: Prompts = Prompts()
    reward: Reward = Reward()
    engine: Engine = Engine()
    sampling: SamplingPerTurn = SamplingPerTurn()
    algorithm: SerializeAsAny[Algorithm] = Algorithm()
    finetune: Finetune = Finetune()
    evaluation: Evaluation = Evaluation()
    publish: Annotated[Publish, OPERATIONAL] = Publish()
    serve: Annotated[Serve, OPERATIONAL] = Serve()
    tracking: Annotated[Tracking, OPERATIONAL] = Tracking()
