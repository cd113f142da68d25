"""What models and data are called outside this machine: by Hub ids, and of a path by its last name alone."""

import re
from pathlib import Path, PurePath
from urllib.parse import urlsplit

CACHED = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/")
"""Where the Hub's cache keeps a model."""


def hub_id(path: str) -> str | None:
    """The Hub id of a model; None for the sandbox's, a file, or a folder of which nobody knows it."""
    if found := CACHED.search(path):
        return f"{found['owner']}/{found['name']}"
    local = path == "sandbox" or path.startswith((".", "/", "~")) or path.count("/") > 1
    return None if local or path.endswith(".gguf") or Path(path).exists() else path


def of_model(path: str) -> str:
    """A model by its Hub id, or the last name of its folder or file."""
    return hub_id(path) or PurePath(path).name


def of_source(source: str | None) -> str:
    """Questions by their Hub id, their URL without user, password and query, or a path's last name; None:
    unknown.
    """
    if source is None:
        return "unknown"
    url = urlsplit(source)
    if url.scheme and url.netloc and url.scheme != "file":
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    if source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists():
        return source
    return PurePath(source).name or source
