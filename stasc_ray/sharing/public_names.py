"""What models, data and code are called outside this machine: by Hub ids, and of a path by its last name
alone.
"""

import os
import re
from pathlib import PurePath
from urllib.parse import urlsplit

CACHED = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/")
"""Where the Hub's cache keeps a model."""
FILES = (
    *(".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".db", ".xml", ".yaml", ".py"),
    *(".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".gguf", ".safetensors", ".bin", ".pt"),
)
"""What a file's name ends in, and no Hub id."""
SINGLE = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
"""Hub ids that have no owner."""


def hub_id(path: str) -> str | None:
    """The Hub id of a model; None for the sandbox's, a file, or a folder of which nobody knows it."""
    if found := CACHED.search(_slashes(path)):
        return f"{found['owner']}/{found['name']}"
    return path if _is_hub_id(path) or (path in SINGLE and not os.path.lexists(path)) else None


def of_model(path: str) -> str:
    """A model by its Hub id, or the last name of its folder or file."""
    return hub_id(path) or last_name(path)


def of_source(source: str | None) -> str:
    """Questions by their Hub id, their URL without user, password and query, or a path's last name; None:
    unknown.
    """
    if source is None:
        return "unknown"
    url = urlsplit(source)
    if url.scheme and url.netloc and url.scheme != "file":
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    return source if _is_hub_id(source) else last_name(source)


def last_name(path: str) -> str:
    """Of a path, or of code that is named by one (`/home/me/rewards.py:grade`), what follows the last
    separator.
    """
    return PurePath(_slashes(path)).name or "unknown"


def _is_hub_id(name: str) -> bool:
    """Whether a name can be one, OWNER/NAME, and nothing here has it. A relative path that is given elsewhere
    may look like one.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1 or name.lower().endswith(FILES) or os.path.lexists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _slashes(path: str) -> str:
    return path.replace("\\", "/")
