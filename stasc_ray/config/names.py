"""A name in the config that leads to Python code: what ships, or `package.module:name` of one's own."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any


def named(field: str, name: str, shipped: Mapping[str, Any], kind: str) -> Any:
    """The shipped object of that name, or the one at a dotted path, which is expected to end in a `kind`.

    Raises:
        ValueError: nothing ships under that name, or the path leads nowhere; it names `field`.
    """
    if name in shipped:
        return shipped[name]
    path = f"`package.module:{kind}`"
    module, colon, attribute = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, shipped, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(shipped)}."
        raise ValueError(f"{field}: {hint} Or a dotted path {path}; found {name!r}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{field}: can't import {name!r}: {error}. Expected {path} on the Python path of this process "
            "and of the Ray workers (PYTHONPATH, or the working_dir of `ray job submit`)"
        ) from error
