"""Pairs: the loss that trl computes, both sides always together, a reference that is computed once."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from harness.chat_templates import tokenizer_of
from harness.tiny_models import example, tiny

from stasc_ray import config
from stasc_ray.learning import batches, encoding, finetune, objectives, packing, placing, reference, steps
from stasc_ray.learning.job import FinetuneJob, RefusedError
from stasc_ray.recipes import section_of
from stasc_ray.tasks.chat import Chat

CPU = torch.device("cpu")
STACKED, PACKED = packing.Passes(256, stacked=True), packing.Passes(256, stacked=False)


def pair(number: int, prompt: int, chosen: int, rejected: int) -> encoding.Row:
    """Two random texts of one prompt."""
    sides = [
        example(10 * number, prompt + chosen, prompt),
        example(10 * number + 1, prompt + rejected, prompt),
    ]
    for name in ("input_ids", "labels"):
        sides[1][name][:prompt] = sides[0][name][:prompt]
    return encoding.as_row(f"q{number}", sides, chosen=1)


def some_pairs() -> batches.Examples:
    return batches.collect([pa.Table.from_pylist([pair(n, 5 + n, 4 + 3 * n, 9 - n) for n in range(5)])])


def make_job(folder: Path, **values: Any) -> FinetuneJob:
    path = folder / "start"
    if not path.exists():
        tiny("LlamaConfig").save_pretrained(path)
        tokenizer_of("chatml").save_pretrained(path)
    settings = config.validate({"finetune": {"learning_rate": 1e-3, **values}}, section_of)
    state = folder / "state"
    state.mkdir(exist_ok=True)
    job = FinetuneJob.of(
        settings, str(path), output=folder / "out", storage=state, iteration=1, on_cuda=False
    )
    return replace(job, objective="dpo")


def loss_of(model: Any, job: FinetuneJob, examples: batches.Examples, passes: packing.Passes) -> float:
    """The mean over pairs, without a step."""
    forward = steps.make_forward(model, job, CPU, 1, passes)
    everything = [list(range(len(examples)))]
    with torch.no_grad():
        joined = (steps.join(examples, group, stacked=passes.stacked) for group in everything)
        return sum(forward(one).item() for one in joined) / len(examples)


# --- the loss
# -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl_rows() -> list[dict[str, str]]:
    return [
        {"prompt": "What is 2 + 3?", "chosen": " 5", "rejected": " six, I think"},
        {"prompt": "What is 12 + 3?", "chosen": " 15 of course", "rejected": " 1"},
        {"prompt": "And 7?", "chosen": " 7", "rejected": " 9"},
    ]


@pytest.mark.parametrize(
    ("ours", "types", "alone"),
    [
        ({"beta": 0.3}, {"sigmoid": 1.0}, False),
        ({"beta": 2.0, "length_normalized": True}, {"sigmoid_norm": 1.0}, False),
        # trl's mean is over all chosen tokens of a batch, ours over pairs: the same in batches of one
        ({"beta": 0.1, "sft_weight": 0.3}, {"sigmoid": 1.0, "sft": 0.3}, True),
    ],
)
def test_the_loss_is_the_one_that_trl_computes(
    ours: dict[str, Any], types: dict[str, float], alone: bool, trl_rows: list[Any], tmp_path: Path
) -> None:
    """trl 1.16.0, `DPOTrainer.compute_loss` with a reference model of other weights."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, other, tokenizer = tiny("LlamaConfig"), tiny("LlamaConfig"), tokenizer_of("chatml")
    tokenizer.pad_token = tokenizer.eos_token
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=noise)
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        beta=ours["beta"], loss_type=list(types), loss_weights=list(types.values()), disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model, other, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_list(trl_rows)
    )
    rows = list(trainer.train_dataset)
    model.eval(), other.eval()
    with torch.no_grad():
        parts = [[row] for row in rows] if alone else [rows]
        right = np.mean([float(trainer.compute_loss(model, trainer.data_collator(part))) for part in parts])

    def side(row: dict[str, list[int]], name: str) -> encoding.Encoded:
        ids = np.array(row["prompt_ids"] + row[name], np.int32)
        labels = np.where(np.arange(len(ids)) < len(row["prompt_ids"]), encoding.IGNORED, ids)
        return encoding.Encoded(input_ids=ids, labels=labels)

    pairs = [
        encoding.as_row(str(n), [side(row, "chosen_ids"), side(row, "rejected_ids")], chosen=1)
        for n, row in enumerate(rows)
    ]
    job = make_job(tmp_path, dpo=ours)
    examples, start = batches.collect([pa.Table.from_pylist(pairs)]), tiny("LlamaConfig")
    for passes in (STACKED, PACKED, replace(PACKED, chunk_logits=5 * 512)):
        compared = replace(examples, reference=reference.compute(other, job, examples, passes, CPU))
        assert loss_of(start, job, compared, passes) == pytest.approx(right, abs=1e-5), passes
    assert abs(right - math.log(2)) > 0.01, "the reference matters"


@pytest.mark.parametrize("passes", [STACKED, PACKED])
def test_at_the_start_nothing_is_preferred_and_steps_raise_the_margin(
    passes: packing.Passes, tmp_path: Path
) -> None:
    job = make_job(tmp_path)
    model, _ = placing.load_model(job)
    examples = reference.known(model, job, some_pairs(), passes, CPU, rank=0, world=1)
    assert loss_of(model, job, examples, passes) == pytest.approx(math.log(2), abs=1e-5)
    before = examples.reference
    forward, optimizer = (
        steps.make_forward(model, job, CPU, 1, passes),
        steps.make_optimizer(model, job.finetune),
    )
    shares = batches.deal(np.arange(5), examples.room(stacked=passes.stacked), 1, 256, stacked=passes.stacked)
    losses = []
    for _ in range(4):
        summed, _ = steps.backward(forward, examples, shares, 0, CPU, stacked=passes.stacked).tolist()
        losses.append(summed / examples.counts.sum())
        steps.update(model, optimizer, 1e-3, 1.0)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses == sorted(losses, reverse=True)
    gained = reference.compute(model, job, examples, passes, CPU) - before
    assert (gained[:, 0] > gained[:, 1]).all()


# --- both sides together
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_pair_is_dealt_packed_and_counted_as_one(workers: int, stacked: bool) -> None:
    examples = some_pairs()
    assert examples.counts.tolist() == [1] * 5 and examples.pairs.all()
    room = examples.room(stacked=stacked)
    shares = batches.deal(np.arange(5), room, workers, 64, stacked=stacked)
    groups = [group for share in shares for group in share]
    assert sorted(index for group in groups for index in group) == list(range(5))
    for group in groups:
        joined = steps.join(examples, group, stacked=stacked)
        assert joined["input_ids"].size <= 64
        labels, sides = joined["labels"], joined["sides"]
        for place, index in enumerate(group):
            for side, (row, number) in enumerate(examples.sequences(index)):
                assert number == side
                learnt = row["labels"][row["labels"] != encoding.IGNORED]
                assert (
                    labels[(sides == 2 * place + side) & (labels != encoding.IGNORED)].tolist()
                    == learnt.tolist()
                )
    assert examples.squares[1] == sum(len(row["labels"]) ** 2 for row, _ in examples.sequences(1))


def test_a_pass_has_room_for_the_longest_pair(tmp_path: Path) -> None:
    """Each side may have `max_length_tokens`, so both together more."""
    from stasc_ray.learning import train_loop

    examples = batches.collect([pa.Table.from_pylist([pair(0, 20, 12, 12), pair(1, 8, 3, 3)])])
    job = replace(make_job(tmp_path, max_length_tokens=32), on_cuda=True)
    model, layers = placing.load_model(job)
    passes = train_loop.choose_passes(model, layers, job, examples, np.arange(2), CPU)
    assert passes.packed and passes.capacity == 64
    batches.deal(np.arange(2), examples.lengths, 1, passes.capacity, stacked=False)


# --- encoded
# ------------------------------------------------------------------------------------------------------


def conversation(said: str, **marks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Which river?"}, {"role": "assistant", "content": said, **marks}]


def encoded(row: dict[str, Any], most: int = 512, objective: str = "dpo") -> list[dict[str, Any]]:
    return finetune._encode(Chat(tokenizer_of("chatml")), {"id": "q1", **row}, most, objective)


def test_each_side_of_a_pair_is_encoded_as_it_would_be_alone() -> None:
    (row,) = encoded({"messages": conversation("Danube", train=True), "rejected": conversation("Rhine")})
    alone = [encoded({"messages": conversation(said)}, objective="sft")[0] for said in ("Danube", "Rhine")]
    assert row["lengths"] == [len(one["input_ids"]) for one in alone] and row["chosen"] == 1
    for name in ("input_ids", "labels"):
        assert row[name].tolist() == [token for one in alone for token in one[name].tolist()]
    assert row["trained_tokens"] == sum(one["trained_tokens"] for one in alone) > 0
    examples = batches.collect([pa.Table.from_pylist([row, *alone])])
    assert examples.pairs.tolist() == [True, False, False]
    assert examples.counts.tolist() == [1, *(one["trained_tokens"] for one in alone)]


@pytest.mark.parametrize(
    ("said", "most", "reason"), [(" ", 512, "no_target"), ("Rhine " * 40, 60, "too_long")]
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_pair_is_left_out_whole(said: str, most: int, reason: str, swapped: bool) -> None:
    sides = [conversation("Danube", train=True), conversation(said, train=True)]
    messages, rejected = sides[::-1] if swapped else sides
    (row,) = encoded({"messages": messages, "rejected": rejected}, most)
    assert row[reason] == 1 and row["trained_tokens"] == len(row["input_ids"]) == 0
    assert len(batches.collect([pa.Table.from_pylist([row])])) == 0


def test_what_an_objective_cannot_learn_is_refused() -> None:
    one, other = conversation("Danube"), conversation("Rhine")
    with pytest.raises(
        ValueError, match=r"'q1': objective 'sft' expects no pair, .* with such examples names dpo"
    ):
        encoded({"messages": one, "rejected": other}, objective="sft")
    with pytest.raises(
        ValueError, match=r"objective 'dpo' expects a pair, found no `rejected` side; .* sft, weigh"
    ):
        encoded({"messages": one})
    with pytest.raises(
        ValueError, match=r"objective 'sft' knows no weights, found -0.5; .* names weighted_sft"
    ):
        encoded({"messages": one, "weight": -0.5}, objective="sft")
    (row,) = encoded({"messages": one, "weight": None, "rejected": None}, objective="sft")
    assert row["weight"] == 1.0
    with pytest.raises(ValueError, match=r"recipe.objective: did you mean 'dpo'"):
        objectives.objective_of("dpoo")


# --- the reference
# --------------------------------------------------------------------------------------------------


def test_the_reference_is_computed_once_and_belongs_to_its_pairs(tmp_path: Path) -> None:
    job, examples = make_job(tmp_path, lora={"dropout": 0.5}, method="lora"), some_pairs()
    model, _ = placing.load_model(job)
    first = reference.known(model, job, examples, STACKED, CPU, rank=0, world=1)
    assert model.training, "only the reference is computed without dropout"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1  # what a checkpoint would do
    backwards = batches.collect(
        [pa.Table.from_pylist([pair(n, 5 + n, 4 + 3 * n, 9 - n) for n in range(5)[::-1]])]
    )
    again = reference.known(model, job, backwards, PACKED, CPU, rank=0, world=1)
    assert again.ids == examples.ids[::-1] and first.reference is not None and again.reference is not None
    assert np.array_equal(again.reference, first.reference[::-1]), "read by id, whatever the order of rows"
    others = batches.collect([pa.Table.from_pylist([pair(7, 5, 4, 4)])])
    with pytest.raises(
        RefusedError, match=r"reference.parquet: expected .* fine-tune's 1 pairs, found 5 of others"
    ):
        reference.known(model, job, others, STACKED, CPU, rank=0, world=1)


def test_an_adapter_that_is_continued_stays_on_in_the_reference(tmp_path: Path) -> None:
    job, examples = make_job(tmp_path, method="lora"), some_pairs()
    base = reference.compute(placing.load_model(job)[0], job, examples, STACKED, CPU)
    trained, _ = placing.load_model(job)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
    trained.save_pretrained(tmp_path / "adapter")
    continued, _ = placing.load_model(replace(job, adapter=tmp_path / "adapter"))
    found = reference.compute(continued, job, examples, STACKED, CPU)
    right = reference.compute(trained.merge_and_unload(), job, examples, STACKED, CPU)
    assert np.allclose(found, right, atol=1e-3) and not np.allclose(found, base, atol=0.1)
