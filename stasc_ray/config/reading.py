"""Reading a config: TOML files and dotted overrides in, JSON out, and messages that name the field.

Importable without Ray, torch, vLLM or transformers. Humans write TOML, machines write JSON.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from stasc_ray.config.sections import Algorithm, Config


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file (None: all defaults), apply `section.field=value` overrides, validate.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: not TOML, an override without `=`, an unknown field or a wrong value; the message names the field.
    """
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"config: expected a TOML file, found nothing at {path}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"config {path}: not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(values, override)
    return validate(values, origin=str(path or "defaults"))


def with_overrides(settings: Config, overrides: Sequence[str]) -> Config:
    """A stored config with `section.field=value` overrides applied.

    Raises:
        ValueError: as `load_config`.
    """
    values = settings.model_dump(mode="json")
    for override in overrides:
        _apply_override(values, override)
    return validate(values, origin="with overrides")


def validate(values: Mapping[str, Any], origin: str = "config") -> Config:
    """Check plain values (parsed TOML or JSON) into a Config; `origin` names them in errors.

    Raises:
        ValueError: with one line per problem, the nearest valid name for a misspelt key.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ValueError(f"config {origin}:\n" + "\n".join(f"  {line}" for line in lines)) from None


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


def _explain(problem: Any) -> str:
    location = [part for part in problem["loc"] if isinstance(part, str)]
    dotted = ".".join(map(str, problem["loc"]))
    if problem["type"] != "extra_forbidden":
        if not isinstance(problem["input"], Mapping):
            return f"{dotted}: {problem['msg']}, found {problem['input']!r}"
        return f"{dotted}: {problem['msg']}" if dotted else problem["msg"]
    section: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    names = [*section.model_fields, *(["variant"] if section is Algorithm else [])]
    nearest = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid: {', '.join(names)}"
    return f"{dotted}: no such field; {hint}"


def walk(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, bool, str]]:
    """Yield (dotted name, value, is default, description) for every leaf field, in the order of definition."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from walk(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, name not in section.model_fields_set, field.description or ""


def fields_table() -> str:
    """Every field with its default and description, as the Markdown table that the README holds."""
    lines = ["| field | default | what it is |", "|---|---|---|"]
    for name, value, _, description in walk(Config()):
        text = " ".join(description.split()).replace("|", "\\|")
        default = as_text(value).replace("|", "\\|").replace("\n", "\\n")
        shown = f"`{default}`" if len(default) < 60 else "see `stasc config`"
        lines.append(f"| `{name}` | {shown} | {text} |")
    return "\n".join(lines)


def differing_fields(left: Config, right: Config) -> list[str]:
    """Dotted names of the leaf fields whose values differ."""
    return [name for (name, a, _, _), (_, b, _, _) in zip(walk(left), walk(right), strict=True) if a != b]


def fingerprint(config: Config) -> str:
    """Short hash of the resolved tree."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:16]


def as_text(value: Any) -> str:
    """A value as it can be given back in an override."""
    return (
        "none"
        if value is None
        else json.dumps(value, ensure_ascii=False, default=lambda part: part.model_dump())
    )


def to_json(config: Config) -> str:
    """The resolved tree as JSON text, as stored in a run folder."""
    return json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
