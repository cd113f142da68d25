"""The config: overrides, the variant's letters, errors that name the field, and every config that ships."""

import subprocess
import sys
from pathlib import Path

import pytest

from stasc_ray import config
from stasc_ray.recipes import RECIPES, section_of

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "jobs" / "configs").glob("*.toml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_is_valid(file: Path) -> None:
    settings = config.load_config(file, [], section_of)
    assert settings.name != "run", "a shipped config names its run"
    assert config.validate(settings.model_dump(mode="json"), section_of) == settings, (
        "and survives the way through JSON"
    )


@pytest.mark.parametrize("letters", ["EIE", "EIF", "ENE", "ENF", "FIE", "FIF", "FNE", "FNF"])
def test_the_papers_letters_go_in_and_come_back(letters: str) -> None:
    assert config.load_config(None, [f"algorithm.variant={letters}"], section_of).algorithm.variant == letters


def test_the_letters_mean_what_the_paper_says() -> None:
    algorithm = config.load_config(None, ["algorithm.variant=FNE"], section_of).algorithm
    assert (algorithm.initial_answers_from, algorithm.filter, algorithm.finetune_from) == (
        "base",
        "non_decreasing",
        "current",
    )


def test_letters_on_the_command_line_replace_the_words_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[algorithm]\nfilter = "both_correct"\nfinetune_from = "base"\n')
    assert config.load_config(file, ["algorithm.variant=eie"], section_of).algorithm.variant == "EIE"
    assert config.load_config(file, [], section_of).algorithm.variant == "EBF"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("finetune.learning_rat=1", "did you mean 'learning_rate'?"),
        ("finetun.learning_rate=1", "did you mean 'finetune'?"),
        ("algorithm.varint=EIE", "did you mean 'variant'?"),
        ("algorithm.variant=EXE", "expected one of EIE EIF"),
        ("finetune.learning_rate=fast", "finetune.learning_rate"),
        ("finetune.learning_rate=-1", "greater than 0, found -1"),
        ("algorithm.iterations=-1", "greater than or equal to 0, found -1"),
        ("sampling.initial.top_p=1.5", "sampling.initial.top_p"),
        ("reward.scope=all", "'whole_text' or 'after_marker', found 'all'"),
        ("evaluation.samples=2 ", ""),
        ("name=../escape", "name"),
        ("seed", "expected section.field=value"),
        ("seed.x=1", "seed"),
        ("algorithm.keep_correct_share=0.4", "filter = 'improving', which keeps no c->c pairs"),
        ("prompts.initial=Answer!", "must contain {question}"),
    ],
)
def test_a_wrong_value_names_its_field(override: str, expected: str) -> None:
    if not expected:
        assert config.load_config(None, [override], section_of).evaluation.samples == 2
        return
    with pytest.raises(ValueError) as refused:
        config.load_config(None, ["seed=1", override], section_of)
    assert expected in str(refused.value)


def test_a_file_that_is_missing_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a TOML file"):
        config.load_config(tmp_path / "none.toml", [], section_of)
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ValueError, match=r"bad\.toml: not valid TOML"):
        config.load_config(tmp_path / "bad.toml", [], section_of)


def test_values_are_read_as_toml_else_as_text() -> None:
    settings = config.load_config(
        None, ["model.path=Qwen/Qwen2.5-1.5B-Instruct", "questions.train.limit=none", "seed=3"], section_of
    )
    assert (settings.model.path, settings.questions.train.limit, settings.seed) == (
        "Qwen/Qwen2.5-1.5B-Instruct",
        None,
        3,
    )


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_value_can_be_given_back_as_an_override(file: Path) -> None:
    settings = config.load_config(file, [], section_of)
    given = [f"{name}={config.as_text(value)}" for name, value, *_ in config.walk(settings)]
    assert config.load_config(None, given, section_of) == settings


def test_presets_fill_what_is_not_given() -> None:
    settings = config.load_config(
        None, ["questions.preset=gsm8k", "questions.columns.id=uid", "prompts.preset=math"], section_of
    )
    assert settings.questions.columns.answers == "answer" and settings.questions.columns.id == "uid"
    assert "{question}" in settings.prompts.initial and len(settings.prompts.correction_demonstrations) == 2


def test_every_field_says_what_it_is() -> None:
    trees = [config.Config(), *(recipe.section() for recipe in RECIPES.values())]
    missing = [name for tree in trees for name, _, _, description in config.walk(tree) if not description]
    assert not missing, f"without a docstring: {missing}"


def test_differing_fields_are_named() -> None:
    changed = config.load_config(None, ["engine.actors=2", "sampling.correction.top_p=0.5"], section_of)
    defaults = config.load_config(None, [], section_of)
    assert config.differing_fields(defaults, changed) == ["engine.actors", "sampling.correction.top_p"]


OPERATIONAL = {
    "engine": "actors device reserve_gpus tensor_parallel_size keep_alive cpus_per_actor max_num_seqs "
    "max_num_batched_tokens gpu_memory_utilization kv_cache_gb enforce_eager concurrent_batches "
    "start_timeout_s max_error_fraction",
    "finetune": "workers sharding gradient_checkpointing pack_tokens checkpoint_every_s max_failures "
    "start_timeout_s",
    "reward": "max_error_fraction",
    "evaluation": "bootstrap_samples",
}
OF_THE_RUN = {
    "engine": "dtype max_model_len_tokens batch_size",
    "finetune": "method lora.rank lora.alpha lora.dropout lora.target_modules learning_rate batch_size "
    "epochs trained_tokens weight_decay schedule warmup_fraction max_grad_norm max_length_tokens packing "
    "dtype dpo.beta dpo.sft_weight dpo.length_normalized",
    "reward": "name scope example max_answer_words rehearse timeout_s",
    "evaluation": "samples policy rounds greedy",
}


@pytest.mark.parametrize("section", OPERATIONAL)
def test_someone_has_thought_about_what_each_new_field_means_on_resume(section: str) -> None:
    """A new field: does another value change what the run is? Then leave it unmarked; and list it here."""
    settings = config.Config()
    fields = {name for name, *_ in config.walk(settings) if name.startswith(f"{section}.")}
    operational = fields & config.operational_fields(settings)
    assert operational == {f"{section}.{name}" for name in OPERATIONAL[section].split()}
    assert fields - operational == {f"{section}.{name}" for name in OF_THE_RUN[section].split()}


def test_whole_sections_are_operational_and_iterations_may_grow() -> None:
    settings = config.Config()
    rules = config.rules_on_resume(settings)
    whole = {
        name for name, *_ in config.walk(settings) if name.startswith(("serve.", "tracking.", "publish."))
    }
    assert len(whole) > 20 and whole <= config.operational_fields(settings)
    others = {name for name in rules if name.partition(".")[0] not in {*OPERATIONAL, "serve", "tracking"}}
    assert others == {"name", "storage", "publish.when", "publish.min_probability", "algorithm.iterations"}
    assert rules["algorithm.iterations"] is config.MAY_GROW
    table = config.fields_table({}).splitlines()
    (grows,) = (row for row in table if row.startswith("| `algorithm.iterations`"))
    assert "| may grow |" in grows
    (dtype,) = (row for row in table if row.startswith("| `engine.dtype`"))
    assert "may differ" not in dtype


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_own_words_belong_to_the_run(name: str) -> None:
    settings = config.load_config(None, [f"algorithm.recipe={name}"], section_of)
    found = {field for field in config.rules_on_resume(settings) if field.startswith("algorithm.")}
    assert found == {"algorithm.iterations"}


def test_what_decides_imports_without_the_heavy_libraries() -> None:
    modules = (
        "config, store, store.files, store.tracking, runtime.capacity, runtime.display, runtime.model_folder"
    )
    modules += (
        ", tasks.questions, tasks.prompts, tasks.chat, tasks.rewards, tasks.sandbox, recipes, "
        "recipes.policies"
        ", generation.asking, learning.encoding"
    )
    names = [f"stasc_ray.{name}" for name in f"{modules}, evaluation.metrics, cli.main".split(", ")]
    program = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    program += (
        "print([name for name in ('ray', 'torch', 'vllm', 'transformers', 'peft') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_the_recipe_says_which_words_the_section_has() -> None:
    given = ["algorithm.recipe=verdict", "algorithm.verdicts=constructed"]
    section = config.load_config(None, given, section_of).algorithm
    assert type(section) is RECIPES["verdict"].section and section.verdicts == "constructed"
    with pytest.raises(ValueError, match=r"algorithm.verdicts: no such field"):
        config.load_config(None, given[1:], section_of)
    with pytest.raises(ValueError, match=r"algorithm.filter: no such field"):
        config.load_config(None, [given[0], "algorithm.filter=improving"], section_of)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stask", "did you mean 'stasc'?"),
        ("xyz", "expected one of stasc, rft, verdict"),
        ("no_such_module_xyz:R", "can't import 'no_such_module_xyz:R': No module named"),
        (
            "stasc_ray.recipes:section_of",
            "expected a Recipe at 'stasc_ray.recipes:section_of', found a function",
        ),
    ],
)
def test_a_recipe_that_is_not_there_is_refused(name: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r"algorithm\.recipe") as refused:
        config.load_config(None, [f'algorithm.recipe="{name}"'], section_of)
    assert expected in str(refused.value)


def test_ones_own_recipe_brings_its_section() -> None:
    settings = config.load_config(None, ['algorithm.recipe="stasc_ray.recipes.rft:RFT"'], section_of)
    assert type(settings.algorithm) is RECIPES["rft"].section
    assert config.validate(settings.model_dump(mode="json"), section_of) == settings


def test_a_named_dataset_brings_what_suits_it_and_a_persons_words_go_before():
    found = config.load_config(None, ["questions.preset=gsm8k"], section_of)
    assert (found.prompts.preset, found.reward.name, found.reward.scope) == ("math", "math", "after_marker")
    found = config.load_config(None, ["questions.preset=gsm8k", "reward.name=f1"], section_of)
    assert (found.prompts.preset, found.reward.name, found.reward.scope) == ("math", "f1", "after_marker")
    plain = config.load_config(None, [], section_of)
    assert (plain.prompts.preset, plain.reward.name, plain.reward.scope) == (
        "qa",
        "in_accuracy",
        "whole_text",
    )


@pytest.mark.parametrize("workers", ["9", "[2, 9]"])
def test_more_workers_than_examples_in_a_step_are_refused(workers: str) -> None:
    with pytest.raises(
        ValueError, match=r"finetune\.workers: expected at most finetune\.batch_size = 8 .*found 9"
    ):
        config.load_config(None, [f"finetune.workers={workers}", "finetune.batch_size=8"], section_of)
    assert config.load_config(None, ["finetune.workers=[2, 8]"], section_of).finetune.most_workers == 8
