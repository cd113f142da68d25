"""What a run will take, as arithmetic. A real calibration is in tests/test_plan.py."""

import pytest

from stasc_ray import config
from stasc_ray.recipes import section_of
from stasc_ray.runtime import capacity, forecast
from stasc_ray.runtime.forecast import Asked, Learnt, Sizes, Speeds

SIZES = Sizes(
    questions={"train": 100, "dev": 10, "test": 20},
    base={"train": Asked(50, 200, 5), "dev": Asked(40, 60, 2), "test": Asked(40, 60, 2)},
    later={"train": Asked(30, 160, 4), "dev": Asked(40, 70, 2), "test": Asked(40, 70, 2)},
    learnt=Learnt(kept=1.0, kept_if_right=4.0, tokens=90, trained_tokens=30),
)
SPEEDS = Speeds(
    opening_s=5,
    first_start_s=20,
    later_start_s=3,
    pass_s=1,
    tokens_per_s=1000,
    engines=1,
    finetune_s=10,
    trained_per_s=500,
    examples_s=2,
    evaluation_s=0.5,
)


def settings(*overrides: str) -> config.Config:
    return config.load_config(None, ["algorithm.iterations=2", *overrides], section_of)


def stages(*overrides: str, speeds: Speeds | None = SPEEDS, engines: int = 1) -> dict[str, forecast.Stage]:
    found = forecast.forecast(settings(*overrides), SIZES, speeds, engines)
    return {f"{one.stage} {one.iteration}": one for one in found}


def test_the_stages_are_those_of_the_loop() -> None:
    assert list(stages()) == [
        *("rollouts 0", "evaluation 0", "examples 1", "finetune 1", "rollouts 1", "evaluation 1"),
        *("examples 2", "finetune 2", "rollouts 2", "evaluation 2"),
    ]
    assert list(stages("algorithm.iterations=0")) == ["rollouts 0", "evaluation 0"]


def test_a_pass_asks_all_questions_and_the_last_one_no_train_questions() -> None:
    found = stages()
    assert found["rollouts 0"].generated_tokens == 100 * 200 + 30 * 60
    assert found["rollouts 0"].prompt_tokens == 100 * 50 + 30 * 40
    assert found["rollouts 0"].seconds == 20 + 1 + (21_800 + 6_200) / 1000
    assert found["rollouts 1"].generated_tokens == 100 * 160 + 30 * 70  # M0's answers are given
    assert found["rollouts 2"].generated_tokens == 30 * 70
    assert found["rollouts 2"].seconds == 3 + 1 + (30 * 70 + 30 * 40) / 1000


def test_the_first_fine_tune_learns_what_was_seen_and_later_ones_come_nearer_to_all() -> None:
    found = stages()
    assert found["finetune 1"].trained_tokens == 100 * 1.0 * 30
    assert found["finetune 2"].trained_tokens == 100 * 2.5 * 30
    assert found["finetune 2"].seconds == 10 + 100 * 2.5 * 90 / 500


def test_epochs_and_a_budget_of_trained_tokens() -> None:
    assert stages("finetune.epochs=3")["finetune 1"].model_tokens == 3 * 9000
    budget = stages("finetune.trained_tokens=6000")["finetune 1"]
    assert (budget.trained_tokens, budget.model_tokens) == (6000, 18_000)


def test_more_engines_take_their_share_and_start_as_long() -> None:
    assert stages(engines=4)["rollouts 0"].seconds == 20 + 1 + 28_000 / 4000


def test_without_a_calibration_there_are_tokens_and_no_seconds() -> None:
    found = stages(speeds=None)
    assert found["rollouts 0"].generated_tokens == 21_800
    assert {one.seconds for one in found.values()} == {None}


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        ([(10_000, 10.0)], (0.0, 1000.0)),
        ([(10_000, 10.0), (110_000, 60.0)], (5.0, 2000.0)),  # 5 s, then 2000 tokens/s
        ([(10_000, 10.0), (15_000, 11.0)], (0.0, 15_000 / 11)),  # too near to each other
        ([(10_000, 10.0), (40_000, 10.1)], (7.575, 40_000 / 10.1 * 4)),  # chance
    ],
)
def test_the_speed_of_an_engine_from_passes_of_two_sizes(passes, expected) -> None:
    assert forecast.engine_speed(passes) == pytest.approx(expected)


def line(stage: str, iteration: int, seconds: float, **more: float) -> dict[str, object]:
    return {"stage": stage, "iteration": iteration, f"{stage}/duration_s": seconds} | {
        f"{stage}/{name}": value for name, value in more.items()
    }


def test_what_the_run_still_takes_is_not_known_before_a_stage_of_each_kind_or_a_plan() -> None:
    first = [line("rollouts", 0, 100, train_share=0.8)]
    assert forecast.seconds_after("finetune", 1, 2, first, {}) is None
    done = [*first, line("evaluation", 0, 1), line("examples", 1, 2), line("finetune", 1, 50)]
    # rollouts 1, evaluation 1, examples 2, finetune 2, rollouts 2 without train questions, evaluation 2
    assert forecast.seconds_after("finetune", 1, 2, done, {}) == pytest.approx(100 + 1 + 2 + 50 + 20 + 1)
    assert forecast.seconds_after("rollouts", 2, 2, done, {}) == 1
    assert forecast.seconds_after("evaluation", 2, 2, done, {}) == 0
    assert forecast.seconds_after("rollouts", 7, 2, done, {}) is None


def test_a_plan_counts_corrected_by_what_was_measured() -> None:
    planned = {(one.stage, one.iteration): one.seconds or 0.0 for one in stages().values()}
    after_base = sum(list(planned.values())[1:])
    assert forecast.seconds_after("rollouts", 0, 2, [], planned) == pytest.approx(after_base)
    slow = [line("rollouts", 0, 2 * planned["rollouts", 0])]
    more = planned["rollouts", 1] + planned["rollouts", 2]
    assert forecast.seconds_after("rollouts", 0, 2, slow, planned) == pytest.approx(after_base + more)


def test_a_pass_that_an_earlier_attempt_had_begun_counts_whole() -> None:
    resumed = line("rollouts", 0, 30, questions=100, resumed_questions=75)
    assert forecast.seconds_of([resumed]) == {("rollouts", 0): 120}


def test_planned_against_measured_over_the_stages_that_are_done() -> None:
    plan = {"stages": forecast.as_rows(list(stages().values()))}
    lines = [
        line("rollouts", 0, 98, prompt_tokens=6200, generated_tokens=43_600),
        line("finetune", 1, 28, trained_tokens=1500),
    ]
    found = {one.what: one for one in forecast.against(plan, lines)}
    assert found["generated tokens"].error == -0.5
    assert found["prompt tokens"].error == 0
    assert found["trained tokens"].error == 1
    assert (found["seconds of rollouts"].planned, found["seconds of rollouts"].error) == (49, -0.5)
    assert found["seconds of all stages"].measured == 126
    assert list(forecast.against({"stages": []}, [])) == []


def test_memory_of_qwen_1_5b_as_docs_clusters_has_it() -> None:
    shape = capacity.Shape(1_540_000_000, 28, 2, 128, 151_936, 18_464_768)
    gpu = capacity.memory_gb(shape, settings(), True)
    assert gpu["engine"]["weights"] * 2**30 == pytest.approx(3.1e9, rel=0.01)
    assert gpu["engine"]["KV cache of a longest sequence"] * 2**30 == 28_672 * 2048
    assert gpu["trainer"]["weights, gradients, optimizer"] * 2**30 == pytest.approx(24.6e9, rel=0.01)
    assert gpu["trainer"]["logits"] * 2**30 == pytest.approx(3.7e9, rel=0.01)
    assert "KV cache" not in gpu["engine"]  # what gpu_memory_utilization leaves
    cpu = capacity.memory_gb(shape, settings("engine.kv_cache_gb=2", "finetune.workers=2"), False)
    assert cpu["engine"]["KV cache"] == 2 and cpu["engine"]["weights"] == 2 * gpu["engine"]["weights"]
    assert cpu["trainer"]["weights, gradients, optimizer"] * 2**30 == pytest.approx(12.3e9, rel=0.01)
    lora = capacity.memory_gb(shape, settings("finetune.method=lora"), True)
    assert lora["trainer"]["weights, gradients, optimizer"] * 2**30 == pytest.approx(3.4e9, rel=0.02)
