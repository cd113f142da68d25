"""Reading a config: TOML files and dotted overrides in, JSON out, and messages that name the field.

Importable without Ray, torch, vLLM or transformers. Humans write TOML, machines write JSON.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, create_model

from stasc_ray.config.sections import DATASETS, OPERATIONAL, Algorithm, Config, OnResume, dataset

Sections = Callable[[str], type[Algorithm]]
"""Gives a recipe's section of the config by the recipe's name; ValueError if there is no such recipe.

Config lies below the recipes, so whoever reads a config passes this: `stasc_ray.recipes.section_of`.
"""


def load_config(path: Path | None, overrides: Sequence[str], sections: Sections) -> Config:
    """Read a TOML file (None: all defaults), apply `section.field=value` overrides, validate.

    Words that neither gives come from what suits the named dataset (`datasets/NAME.toml`), else from the
    defaults.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: not TOML, an override without `=`, an unknown field or a wrong value; the message names
            the field.
    """
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"config: expected a TOML file, found nothing at {path}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"config {path}: not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(values, override)
    _fill_in(values, what_suits(values))
    return validate(values, sections, origin=str(path or "defaults"))


def what_suits(values: Mapping[str, Any]) -> dict[str, Any]:
    """The words, `section.field` to value, that suit the dataset that plain values name; none if it is
    unknown.
    """
    questions = values.get("questions", {})
    preset = questions.get("preset") if isinstance(questions, Mapping) else None
    return dataset(preset)["suits"] if preset in DATASETS else {}


def _fill_in(values: dict[str, Any], words: Mapping[str, Any]) -> None:
    """Set the words that are not there."""
    for dotted, value in words.items():
        *path, field = dotted.split(".")
        section = values
        for name in path:
            section = section.setdefault(name, {})
        section.setdefault(field, value)


def with_overrides(settings: Config, overrides: Sequence[str], sections: Sections) -> Config:
    """A stored config with `section.field=value` overrides applied.

    Raises:
        ValueError: as `load_config`.
    """
    values = settings.model_dump(mode="json")
    for override in overrides:
        _apply_override(values, override)
    return validate(values, sections, origin="with overrides")


def validate(values: Mapping[str, Any], sections: Sections, origin: str = "config") -> Config:
    """Check plain values (parsed TOML or JSON) into a Config; `origin` names them in errors.

    `algorithm.recipe` says which section `[algorithm]` is (a tagged union).

    Raises:
        ValueError: with one line per problem, the nearest valid name for a misspelt key.
    """
    given = values.get("algorithm", {})
    default = Algorithm.model_fields["recipe"].default
    name = given.get("recipe", default) if isinstance(given, Mapping) else default
    section = sections(name) if isinstance(name, str) else Algorithm
    tagged: Any = create_model("Config", __base__=Config, algorithm=(section, Field(default_factory=section)))
    try:
        found = tagged.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem, tagged) for problem in error.errors()]
        raise ValueError(f"config {origin}:\n" + "\n".join(f"  {line}" for line in lines)) from None
    # A plain Config, since a class made here can't be pickled.
    return Config.model_construct(
        found.model_fields_set, **{name: getattr(found, name) for name in Config.model_fields}
    )


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator:
        raise ValueError(f"override: expected section.field=value, found {override!r}")
    *sections, field = dotted.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {section} is a value, not a section")
    if field == "variant":  # the shorthand replaces the words a file may have set
        for word in ("initial_answers_from", "filter", "finetune_from"):
            values.pop(word, None)
    values[field] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    """TOML where it parses (`3`, `true`, `[1, 2]`, `"x"`), `none` for None, otherwise the bare text."""
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(problem: Any, tree: type[BaseModel]) -> str:
    location = [part for part in problem["loc"] if isinstance(part, str)]
    dotted = ".".join(map(str, problem["loc"]))
    if problem["type"] != "extra_forbidden":
        if not isinstance(problem["input"], Mapping):
            return f"{dotted}: {problem['msg']}, found {problem['input']!r}"
        return f"{dotted}: {problem['msg']}" if dotted else problem["msg"]
    section = tree
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    names = [*section.model_fields, *(["variant"] if "filter" in section.model_fields else [])]
    nearest = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid: {', '.join(names)}"
    return f"{dotted}: no such field; {hint}"


def walk(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, bool, str]]:
    """Yield (dotted name, value, is default, description) for every leaf field, in the order of
    definition.
    """
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from walk(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, name not in section.model_fields_set, field.description or ""


def rules_on_resume(
    section: BaseModel, prefix: str = "", of_all: OnResume | None = None
) -> dict[str, OnResume]:
    """Of the leaf fields that a resumed run may have otherwise: dotted name to mark (`sections.OnResume`).

    Args:
        of_all: mark of the section itself, which all its fields have.
    """
    found: dict[str, OnResume] = {}
    for name in type(section).model_fields:
        value, mark = getattr(section, name), _own_mark(type(section), name) or of_all
        if isinstance(value, BaseModel):
            found |= rules_on_resume(value, f"{prefix}{name}.", mark)
        elif mark:
            found[f"{prefix}{name}"] = mark
    return found


def _own_mark(section: type[BaseModel], name: str) -> OnResume | None:
    """A field's mark; a recipe's section that gives a field another default keeps the mark of its base."""
    classes = (one for one in section.__mro__ if issubclass(one, BaseModel) and name in one.model_fields)
    marks = (
        mark for one in classes for mark in one.model_fields[name].metadata if isinstance(mark, OnResume)
    )
    return next(marks, None)


def operational_fields(config: Config) -> set[str]:
    """Dotted names of the fields that say how a run is carried out, not what it is."""
    return {name for name, mark in rules_on_resume(config).items() if mark is OPERATIONAL}


def fields_table(sections: Mapping[str, type[Algorithm]]) -> str:
    """Every field with its default, what a resumed run may do with it and its description: the Markdown
    tables of docs/config.md.

    The words that a recipe adds to `[algorithm]` follow the table of all the others, one table per recipe.
    """
    common = {name: value for name, value, *_ in walk(Algorithm(), "algorithm.")}
    rules = {name: mark.rule for name, mark in rules_on_resume(Config()).items()}
    tables = [_table(walk(Config()), rules)]
    for name, section in sections.items():
        rows = walk(section(), "algorithm.")
        own = [row for row in rows if row[0] != "algorithm.recipe" and common.get(row[0], ...) != row[1]]
        tables.append(f"### `algorithm.recipe = {as_text(name)}`\n\n{_table(own, rules)}")
    return "\n\n".join(tables)


def _table(rows: Iterable[tuple[str, Any, bool, str]], rules: Mapping[str, str]) -> str:
    lines = ["| field | default | on resume | what it is |", "|---|---|---|---|"]
    for name, value, _, description in rows:
        text = " ".join(description.split()).replace("|", "\\|")
        default = as_text(value).replace("|", "\\|").replace("\n", "\\n")
        shown = f"`{default}`" if len(default) < 60 else "see `stasc config`"
        lines.append(f"| `{name}` | {shown} | {rules.get(name, '')} | {text} |")
    return "\n".join(lines)


def differing_fields(left: Config, right: Config) -> list[str]:
    """Dotted names of the leaf fields whose values differ, or that only one of them has."""
    before, after = ({name: value for name, value, *_ in walk(tree)} for tree in (left, right))
    return [name for name in {**before, **after} if before.get(name, ...) != after.get(name, ...)]


def fingerprint(config: Config) -> str:
    """Short hash of the resolved tree."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:16]


def as_text(value: Any) -> str:
    """A value as it can be given back in an override."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_none=True)
    match value:
        case None:
            return "none"
        case Mapping():
            return f"{{{', '.join(f'{json.dumps(key)} = {as_text(one)}' for key, one in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(map(as_text, value))}]"
    return json.dumps(value, ensure_ascii=False)


def to_json(config: Config) -> str:
    """The resolved tree as JSON text."""
    return json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
