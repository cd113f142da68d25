"""Recipes: what is asked, what is learnt, how questions are answered. `RECIPES` lists those that ship."""

from stasc_ray.config import Algorithm, named
from stasc_ray.recipes.cct import CCT
from stasc_ray.recipes.critique import CRITIQUE
from stasc_ray.recipes.preference import PREFERENCE
from stasc_ray.recipes.recipe import Recipe
from stasc_ray.recipes.rft import RFT
from stasc_ray.recipes.sharpening import SHARPENING
from stasc_ray.recipes.splice import SPLICE
from stasc_ray.recipes.stasc import STASC
from stasc_ray.recipes.verdict import VERDICT
from stasc_ray.recipes.verdict_preference import VERDICT_PREFERENCE

RECIPES: dict[str, Recipe] = {
    "stasc": STASC,
    "rft": RFT,
    "verdict": VERDICT,
    "critique": CRITIQUE,
    "cct": CCT,
    "splice": SPLICE,
    "sharpening": SHARPENING,
    "preference": PREFERENCE,
    "verdict_preference": VERDICT_PREFERENCE,
}


def recipe_of(name: str) -> Recipe:
    """A recipe by its name in the config, or by the dotted path `package.module:NAME` of one's own.

    Raises:
        ValueError: no such recipe, or the path leads to something else.
    """
    found = named("algorithm.recipe", name, RECIPES, "RECIPE")
    if not isinstance(found, Recipe):
        raise ValueError(f"algorithm.recipe: expected a Recipe at {name!r}, found a {type(found).__name__}")
    return found


def section_of(name: str) -> type[Algorithm]:
    """A recipe's section of the config, for `config.load_config`."""
    return recipe_of(name).section


def chosen_by(section: Algorithm) -> tuple[str, ...]:
    """The measures by which a version is chosen on dev, the first that there is.

    With Fixed initialization it is the one that the model is trained for: its corrections of M0's answers
    (`base/`). M0 itself has only its own answers.
    """
    measure = recipe_of(section.recipe).chosen_by
    fixed = section.initial_answers_from == "base" and measure != "r_y1"  # M0's answers measure M0 alone
    return (f"base/{measure}", measure) if fixed else (measure,)
