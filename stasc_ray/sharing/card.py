"""The card of a version on the Hub: what it is, how it is asked, what it was trained on, what it is worth.

Made from what the run committed. No path of the machine is in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow.parquet as pq

from stasc_ray import config, store
from stasc_ray.evaluation import measuring
from stasc_ray.evaluation.metrics import INTERVALS
from stasc_ray.evaluation.paired import Paired, p_value, paired
from stasc_ray.recipes import policies, recipe_of
from stasc_ray.recipes.recipe import Recipe, plan_for
from stasc_ray.recipes.trace import ANSWER, VERDICT_TURN
from stasc_ray.sharing import evaluations, public_names, usage
from stasc_ray.sharing.evaluations import Evaluation
from stasc_ray.store import files

SHOWN = {"r_y1": "r(Y1)", "r_y2": "r(Y2)", "i_to_c": "i->c", "c_to_i": "c->i"}


@dataclass(frozen=True)
class Told:
    """A version, and what its run knows of it."""

    repo: str
    version: str
    iteration: int
    folder: store.RunFolder
    settings: config.Config
    """Under which it was asked."""
    trained: config.Config
    """Under which it was trained; another one if the run forked there."""

    @property
    def base(self) -> str:
        """M0's name."""
        return public_names.of_model(self.settings.model.path)

    @property
    def recipe(self) -> Recipe:
        """By which it was asked."""
        return recipe_of(self.settings.algorithm.recipe)

    @property
    def policy(self) -> policies.Policy:
        """By which it answered."""
        return policies.policy(self.settings.evaluation.policy, self.recipe)

    @cached_property
    def asked(self) -> Sequence[usage.Turn]:
        """What one answer took; nothing if that can't be shown."""
        return self._turns(cut=False)

    @cached_property
    def asked_if_cut(self) -> Sequence[usage.Turn]:
        """What one answer takes if each text is cut at its limit."""
        return self._turns(cut=True)

    @cached_property
    def asked_to_learn(self) -> Sequence[str]:
        """The turns of one train question, before this version was trained; nothing if none are known."""
        try:
            return [turn.turn for turn in usage.turns(self.trained, self.iteration - 1, self._row, "train")]
        except (ValueError, TypeError, LookupError):
            return []

    @property
    def _row(self) -> dict[str, Any]:
        """A test question."""
        file = self.folder.questions / "test.parquet"
        with files.whole(file):
            return pq.ParquetFile(file).read_row_group(0).slice(0, 1).to_pylist()[0]

    def _turns(self, *, cut: bool) -> Sequence[usage.Turn]:
        try:
            return usage.turns(self.settings, self.iteration, self._row, cut=cut)
        except (ValueError, TypeError, LookupError):  # a recipe of one's own that reads its texts
            return []

    @property
    def rounds(self) -> int:
        """Corrections in a row at most."""
        return self.policy.rounds(plan_for(self.settings, self.iteration, "test"))

    @property
    def corrects(self) -> bool:
        """Whether an answer follows the first one."""
        if not self.asked:
            return self.rounds > 0
        most = max(self.asked, self.asked_if_cut, key=len)
        return sum(turn.turn in self.recipe.answers for turn in most) > 1

    @property
    def votes(self) -> bool:
        """Whether several samples come to one answer."""
        return self.policy.weigh is not None

    @property
    def corrects_base(self) -> bool:
        """Whether it was measured on M0's first answers."""
        return self.corrects and self.settings.algorithm.initial_answers_from == "base"

    def line(self, stage: str, iteration: int | None = None) -> Mapping[str, Any]:
        """What metrics.jsonl says of a stage, without the stage's name before each; empty if nothing."""
        wanted = (stage, self.iteration if iteration is None else iteration)
        lines = (one for one in self.folder.metrics() if (one["stage"], one["iteration"]) == wanted)
        return {name.removeprefix(f"{stage}/"): value for name, value in next(lines, {}).items()}

    def measured(self, split: str, iteration: int) -> Evaluation | None:
        """The evaluation of an iteration's model; None if there is none that compares."""
        if iteration < self.folder.fork().get("compares_from", 0):
            return None  # asked under another config, before the run forked
        try:
            found = evaluations.find(self.folder.path, iteration, None, split)
            own = found.corrects_base and not self.corrects  # M0's first answers say nothing of this version
            return replace(found, own_answers=own)
        except (FileNotFoundError, ValueError):
            return None


def card(told: Told) -> str:
    """README.md of the repository, with front matter."""
    parts = [
        f"---\n{_front(told)}---",
        f"# {told.repo.partition('/')[2]}",
        _what(told),
        "## How to use it",
        _usage(told),
        "## What it is worth",
        *_worth(told),
        "## How it was trained",
        _table(("", ""), _method(told)),
        "## Questions",
        *_lineage(told),
        "## Versions",
        _table(("", ""), _versions(told)),
        "## Licence",
        "The licence of the base model applies to these weights."
        + (f" The questions: {licence}." if (licence := _licence(told)) else ""),
    ]
    return "\n\n".join(parts) + "\n"


def _front(told: Told) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = _dataset(told)
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="answering and correcting the answer" if told.corrects else "answering",
            dataset_type=dataset or found.source,
            dataset_name=found.source,
            dataset_split=split,
            metric_type=told.settings.reward.name.rpartition(":")[2],
            metric_name=f"{SHOWN[name]}, mean reward of the {which} answer",
            metric_value=round(found.figures[name], 4),
        )
        for split in ("dev", "test")
        if (found := told.measured(split, told.iteration))
        for name, which in _rewarded(told).items()
        if found.figures.get(name) is not None
    ]
    base = public_names.hub_id(told.settings.model.path)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["stasc-ray", *(["self-correction"] if told.corrects else [])],
        model_name=told.repo.partition("/")[2],
        eval_results=results or None,
        base_model=base,
        datasets=[dataset] if dataset else None,
    )
    return data.to_yaml() + "\n"


def _what(told: Told) -> str:
    base = public_names.hub_id(told.settings.model.path)
    named = f"[{base}](https://huggingface.co/{base})" if base else f"`{told.base}`"
    local = " (a local model whose Hub id the run does not know)"
    tiny = " (the tiny model that ships with stasc_ray)"
    from_where = "" if base else tiny if told.settings.model.path == "sandbox" else local
    recipe = recipe_of(told.trained.algorithm.recipe)
    if not told.corrects:
        does = "answers questions; it was not asked to correct its answers"
    elif told.corrects_base:
        does = "corrects answers to questions; it was measured on the base model's answers"
    else:
        does = "answers questions and corrects its own answers"
    return (
        f"A language model that {does}. It is {named}{from_where}, fine-tuned by stasc_ray with the recipe "
        f"`{told.trained.algorithm.recipe}` and the objective `{recipe.objective}`. What it learnt from: "
        f"{recipe.keeps(told.trained.algorithm)}. It is version {told.version} of the run "
        f"`{told.settings.name}`."
    )


def _usage(told: Told) -> str:
    """The run's turns as a program, or that they can't be shown."""
    if not told.asked:
        return f"By the turns of the recipe `{told.settings.algorithm.recipe}`, which stasc_ray asks."
    program = usage.code(told.repo, told.settings, told.asked, told.recipe.answers)
    return f"{' '.join(_asked(told))}\n\n```python\n{program}```"


def _asked(told: Told) -> Iterator[str]:
    """What the program asks, and where the chain that was measured may end before it."""
    asked = usage.final(told.asked, told.recipe.answers)
    yield (
        f"With the run's own prompts: {', then '.join(turn.turn for turn in asked)}. The run measured by the "
        f"policy `{told.settings.evaluation.policy or told.recipe.policy}`."
    )
    if not told.corrects:
        yield "No correction is asked for."
    for turn in asked[:-1]:
        if turn.stop:
            yield f"As measured, it ends with a {turn.turn} whose last words are `{turn.stop}`, in any case."
        elif turn.turn in (*told.recipe.verdicts, VERDICT_TURN):
            yield (
                f"If a {turn.turn} is read as saying that the answer is right, the measured chain ends; "
                "the program goes on."
            )
    yield from _unlike(told)


def _unlike(told: Told) -> Iterator[str]:
    """What was measured and the program does not do."""
    samples = f"Measured were {told.settings.evaluation.samples} samples of each question"
    several = told.settings.evaluation.samples > 1 and not told.votes
    said = {
        "Measured were corrections of the base model's answers; in the program it corrects its own.": (
            told.corrects_base
        ),
        f"Measured were up to {told.rounds} corrections in a row; the program asks for one.": told.rounds > 1,
        f"{samples}, of which the policy chose one answer; the program writes one sample.": told.votes,
        f"{samples}, which count by their mean; the program writes one.": several,
        "As measured, nothing follows an answer that the reward calls right; the program has no reward.": (
            told.policy.needs_reward
        ),
        "As measured, an answer that was cut at its limit is asked on; the program leaves it.": (
            len(told.asked_if_cut) > len(told.asked)
        ),
        "As measured, early texts have a part of the tokens; the program gives all.": any(
            turn.budget < 1 for turn in told.asked
        ),
    }
    yield from (sentence for sentence, holds in said.items() if holds)


def _rewarded(told: Told) -> dict[str, str]:
    """The mean rewards that say something, and of which answers they are."""
    second = "corrected" if told.corrects else "chosen"
    return {"r_y1": "first", **({"r_y2": second} if told.corrects or told.votes else {})}


def _worth(told: Told) -> Iterator[str]:
    """Metrics of the base model and of this version, each with its 95% interval, and their difference."""
    settings, two = told.settings, len(_rewarded(told)) > 1
    shown = SHOWN if two else {"r_y1": "r(Y1)"}
    rows = [
        [f"{split}, {'base model' if number == 0 else 'this version'}", str(found.figures["questions"])]
        + [_figure(found.figures, name) for name in shown]
        for split in ("dev", "test")
        for number in (0, told.iteration)
        if (found := told.measured(split, number))
    ]
    if not rows:
        yield "Nothing was measured."
        return
    yield _table(("", "questions", *shown.values()), rows)
    yield (
        f"Mean rewards (`{public_names.last_name(settings.reward.name)}`, "
        f"{settings.reward.scope.replace('_', ' ')}) of the "
        f"{_meant(told)}. In brackets: 95% intervals, bootstrap over questions. Versions are chosen on dev. "
        f"Texts were {_sampled(settings)}."
    )
    if told.corrects_base:
        yield "This version corrects the base model's answers, so its r(Y1) is the base model's."
    if (found := difference(told)) is not None:
        yield (
            f"On the same {found.questions} test questions r(Y{2 if two else 1}) is {found.difference:+.3f} "
            f"[{found.low:+.3f}, {found.high:+.3f}] against the base model's: only this version has "
            f"{found.gained} questions right, only the base model {found.lost} (McNemar p "
            f"{p_value(found.p)})."
        )


def _meant(told: Told) -> str:
    """What the figures are of."""
    if not told.corrects and not told.votes:
        return "answers, r(Y1)"
    second = "last answers, r(Y2)" if told.corrects else "answers that the policy chose, r(Y2)"
    if told.corrects and told.votes:
        second = "answers that the policy chose after corrections, r(Y2)"
    return (
        f"first answers, r(Y1), and of the {second}; shares of all questions that were wrong at first and "
        "right at last, i->c, and right at first and wrong at last, c->i"
    )


def difference(told: Told) -> Paired | None:
    """r(Y2) of this version less M0's, question by question on test; None if both did not answer the same."""
    pair = [told.measured("test", number) for number in (0, told.iteration)]
    scored = [_rewards(found) for found in pair if found]
    if len(scored) < 2 or scored[0].keys() != scored[1].keys() or not scored[0]:
        return None
    names, settings = sorted(scored[0]), told.settings
    first, second = ([of[name] for name in names] for of in scored)
    samples = settings.evaluation.bootstrap_samples
    return paired(first, second, settings.algorithm.threshold, samples, settings.seed)


def _rewards(found: Evaluation) -> dict[str, float]:
    """r(Y2) by question."""
    return {
        score["id"]: score["r_y2"]
        for file in found.files
        for score in measuring.score_file(file, found.settings, found.writer)
    }


def _figure(figures: Mapping[str, Any], name: str) -> str:
    value, low, high = (figures.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return "-"
    return (
        f"{value:.3f} [{low:.3f}, {high:.3f}]"
        if name in INTERVALS and None not in (low, high)
        else f"{value:.3f}"
    )


def _sampled(settings: config.Config) -> str:
    first, later = settings.sampling.initial, settings.sampling.correction
    if settings.evaluation.greedy:
        return "greedy"
    if (first.temperature, first.top_p) == (later.temperature, later.top_p):
        return f"sampled at temperature {first.temperature:g}, top_p {first.top_p:g}"
    return f"sampled at temperature {first.temperature:g} (answers) and {later.temperature:g} (what follows)"


def _method(told: Told) -> Iterator[tuple[str, str]]:
    settings, finetune = told.trained, told.trained.finetune
    recipe, kept = recipe_of(settings.algorithm.recipe), told.line("examples")
    from_base = settings.algorithm.finetune_from == "base"
    yield "Recipe", f"`{settings.algorithm.recipe}` {settings.algorithm.variant}"
    yield "Learns", recipe.keeps(settings.algorithm)
    yield "Objective", f"`{recipe.objective}`"
    yield "Iteration", f"{told.iteration} of {settings.algorithm.iterations}"
    before = "the base model" if told.iteration == 1 else f"the model of iteration {told.iteration - 1}"
    if told.asked_to_learn:
        yield "Train questions were asked for", ", ".join(dict.fromkeys(told.asked_to_learn))
    if ANSWER in told.asked_to_learn:
        yield (
            "First answers by",
            "the base model" if settings.algorithm.initial_answers_from == "base" else before,
        )
    at = f" at revision {settings.model.revision}" if settings.model.revision else ""
    yield "Base model", f"{told.base}{at}"
    yield "Started from", "the base model" if from_base else before
    yield (
        "Weights",
        "LoRA, merged; the adapter is in adapter/" if finetune.method == "lora" else "all of them trained",
    )
    yield "Learning rate", f"{finetune.learning_rate:g}"
    yield "Batch size, epochs", f"{finetune.batch_size}, {finetune.epochs}"
    yield "Examples", f"{kept['kept']} of {kept['attempts']} attempts" if kept else "unknown"
    trained = told.line("finetune")
    if trained:
        yield "Steps, last loss", f"{trained['steps']}, {trained['loss_last']:.4g}"
    yield "Seed", str(settings.seed)


def _lineage(told: Told) -> Iterator[str]:
    """Where the questions came from; of files their names alone."""
    questions, counts = told.settings.questions, told.line("questions", 0)
    rows = []
    for name in ("train", "dev", "test"):
        split = getattr(questions, name)
        source = f"`{public_names.of_source(split.source)}`" if split.source else "carved from train's"
        rows.append([name, source, split.split or "-", str(counts.get(name, "unknown"))])
    yield _table(("split", "source", "its split", "questions"), rows)
    left_out = counts.get("dropped_duplicates", 0), counts.get("skipped_bad_rows", 0)
    yield (
        f"Preset `{questions.preset}`, chosen by seed {told.settings.seed}; {left_out[0]} duplicates and "
        f"{left_out[1]} bad rows left out. Only train questions were learnt from."
    )


def _versions(told: Told) -> Iterator[tuple[str, str]]:
    file = told.folder.path / "environment.json"
    environment = files.read_json(file) if file.is_file() else {}
    yield from environment.get("versions", {}).items()
    yield "config fingerprint", config.fingerprint(told.settings)
    if commit := environment.get("git_commit"):
        yield "git commit of stasc_ray", str(commit)


def _dataset(told: Told) -> str | None:
    """The Hub id of the preset's own dataset, if the questions come from it."""
    published = config.dataset(told.settings.questions.preset).get("hub", {}).get("id")
    sources = {getattr(told.settings.questions, name).source for name in ("train", "dev", "test")}
    return published if published in sources else None


def _licence(told: Told) -> str | None:
    return config.dataset(told.settings.questions.preset).get("licence") if _dataset(told) else None


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
