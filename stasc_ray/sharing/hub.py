"""A version of a run for the Hugging Face Hub: which files go, and the one commit that takes them there.

`prepare` contacts nobody and refuses what must not go. `push` makes the repository if it is new. Nothing in
the run folder changes.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from stasc_ray import store
from stasc_ray.recipes import section_of
from stasc_ray.serving.published import check_files
from stasc_ray.sharing import evaluations, public_names
from stasc_ray.sharing.card import Told, card
from stasc_ray.store import fork
from stasc_ray.store.files import read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter/*")
"""Of an earlier version in the same repository these are taken away: loaders would mix them with the new."""
FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("chat_template*", "additional_chat_templates/*.jinja", "canary.json"),
    *("adapter/adapter_config.json", "adapter/*.safetensors"),
)
"""What goes of a model folder. Its card is made for the Hub; marks and the trainer's log stay here."""
CODE = ("*.py",)
"""And of a model that runs its own code."""
PATHS = ("base_model_name_or_path", "_name_or_path", "name_or_path")
"""Fields of configs that name a model: by its Hub id, or by where it lies."""
WORDS = ("chat_template", "stop_strings", "added_tokens_decoder", "target_modules")
"""And fields whose texts are no paths, whatever they look like; those of tokens (`eos_token`) are others."""
NO_CONFIGS = (
    *("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json", "canary.json"),
    "*.safetensors.index.json",
)
"""JSON files that hold no fields but words, tokens and tensors."""
LOCAL = re.compile(
    r"(?!.*\{[{%])"  # no template
    r"((file:|~[^/\\]*|\.{0,2})/.*\w.*|([A-Za-z]:|~|\.\.|\\)[/\\].*\w.*|~\w+|\.\.)"
)
"""A text that is a path whether anything lies there or not."""
CACHE = re.compile(r"/models--[^/]+/(snapshots|blobs)/")
"""In a path: the Hub's cache, whose files are links."""
LATER_S = 60.0
"""A file that changed so long after its stage was committed was rewritten."""


@dataclass(frozen=True)
class Upload:
    """All that would be sent."""

    repo: str
    version: str
    card: str
    """README.md."""
    files: Mapping[str, Path | bytes]
    """By name in the repository; bytes if it is not sent as it lies here."""
    name: str
    """Of the run."""

    def listed(self) -> Iterator[str]:
        """A line for each file with its size, and the total."""
        sizes = {name: _size(what) for name, what in self.contents().items()}
        yield f"to {self.repo}, version {self.version} of {self.name}:"
        yield from (f"{_readable(size):>10}  {name}" for name, size in sorted(sizes.items()))
        yield f"{_readable(sum(sizes.values())):>10}  in {len(sizes)} files"

    def contents(self) -> dict[str, Path | bytes]:
        """The files and the card."""
        return {**self.files, "README.md": self.card.encode()}


def prepare(run: Path, version: str | None, repo: str) -> Upload:
    """What a push of a version would send; contacts nobody.

    Args:
        version: a published one; None: LATEST.
        repo: OWNER/NAME.

    Raises:
        FileNotFoundError: no run folder; the model's folder, or a file in it, is missing.
        ValueError: no such version; M0, which is nobody's to push; a model folder that is not committed, not
            whole, or changed since, or has links out of the run; a name that the Hub refuses; a file of the
            run that can't be read.
    """
    _check_name(repo)
    folder = store.RunFolder(run.resolve())
    store.read_config(folder.path, section_of)  # refuses what is no run
    found = evaluations.manifest(folder, version)
    name, iteration = found["version"], found["iteration"]
    if iteration == 0:
        trained = [one["version"] for one in folder.versions() if one.get("iteration")]
        why = "" if version is not None else " (LATEST: no iteration was better on dev)"
        others = f"choose one by --version: {', '.join(trained)}" if trained else "let the run train one"
        raise ValueError(
            f"stasc push: expected a version that was trained, found {name}, the base model as it was{why}; "
            f"{others}"
        )
    model = folder.stage(iteration, "model")
    settings = fork.config_of(folder.path, section_of, iteration)
    patterns = (*FILES, *(CODE if settings.model.trust_remote_code else ()))
    files = {
        path: file
        for file in sorted(model.rglob("*"))
        if _goes(path := str(file.relative_to(model)), patterns) and (file.is_file() or file.is_symlink())
    }
    _check_links(folder, model, files)
    _check_model(folder, model, files)
    evaluations.environment(folder)  # the card shows its versions
    for number in (0, iteration):
        evaluations.mark(folder, folder.stage(number, "evaluation"))  # one that is broken is not missing
    trained_under = fork.config_of(folder.path, section_of, iteration - 1)
    told = Told(repo, name, iteration, folder, settings, trained_under)
    sent = {path: _sent(file, path, told.base) for path, file in files.items()}
    return Upload(repo, name, card(told), sent, settings.name)


def push(upload: Upload, *, private: bool = False, api: "HfApi | None" = None) -> str:
    """Send it in one commit; returns what to tell. An old repository keeps its visibility and its history.

    Args:
        private: make a new repository private.
        api: the Hub; None: the one that HF_ENDPOINT names, with the token of `hf auth login` or HF_TOKEN.

    Raises:
        ValueError: no token, one that may not, or a public repository where a private one was asked for;
            nothing was sent.
        ConnectionError: the Hub can't be reached or answers with an error.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if api is None and not get_token():
        raise ValueError(
            "stasc push: expected a token of the Hub, found none; `hf auth login` keeps one, or set HF_TOKEN"
        )
    api = api or HfApi()
    contents = upload.contents()
    with _hub_errors(upload.repo, api.endpoint):
        is_new = _make_repository(api, upload.repo, private)
        there = [] if is_new else api.list_repo_files(upload.repo)
    stale = [name for name in there if name not in contents and _goes(name, WEIGHTS)]
    operations = [
        *(CommitOperationAdd(name, what) for name, what in contents.items()),
        *(CommitOperationDelete(name) for name in stale),
    ]
    message = f"{upload.version} of the stasc_ray run {upload.name}"
    with _left_empty(upload.repo, is_new), _hub_errors(upload.repo, api.endpoint):
        commit = api.create_commit(upload.repo, operations, commit_message=message)
    gone = f"; took away {', '.join(stale)} of an earlier commit" if stale else ""
    how = "a new repository" if is_new else "a new commit; the history keeps what was there"
    return f"{commit.commit_url} ({how}{gone})"


def _make_repository(api: "HfApi", repo: str, private: bool) -> bool:
    """Make the repository unless it is there; whether it is new."""
    if not api.repo_exists(repo):
        api.create_repo(repo, private=private or None)
        return True
    if private and not api.model_info(repo).private:
        raise ValueError(
            f"--private: expected a private repository or a new one, found {repo}, which is public; make it "
            "private on the Hub, or choose another name"
        )
    return False


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if repo.count("/") != 1:
            raise HFValidationError("one slash between the two")
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(
            f"--to: expected OWNER/NAME (letters, digits, - _ .), found {repo!r} ({error})"
        ) from None


def _check_links(folder: store.RunFolder, model: Path, files: Mapping[str, Path]) -> None:
    """Refuse links to nothing, to folders, and to files that are neither the run's nor the Hub's."""
    inside = (folder.path, model.resolve())
    for path, file in files.items():
        end = file.resolve()
        ours = any(end.is_relative_to(one) for one in inside) or CACHE.search(end.as_posix())
        if not end.is_file() or not ours:
            what = "which is no file" if not end.is_file() else "which is outside the run"
            raise ValueError(
                f"stasc push: expected a file of the run, found {path} in {model}, a link to {end}, {what}; "
                "put a file in its place, or take the link away"
            )


def _check_model(folder: store.RunFolder, model: Path, files: Mapping[str, Path]) -> None:
    """Refuse a model folder that is not what the run measured."""
    mark = evaluations.mark(folder, model)
    if mark is None:
        raise FileNotFoundError(
            f"stasc push: expected a finished model (with {store.COMMIT_MARK}) in {model}, found none; "
            "`stasc run` makes it"
        )
    check_files(str(model))
    # The mark's own time too: a copy of the run folder may have new times, but has them for all files.
    committed = max(mark["line"]["time"], (model / store.COMMIT_MARK).stat().st_mtime)
    for path, file in files.items():
        if file.stat().st_mtime > committed + LATER_S:
            raise ValueError(
                f"stasc push: expected the model that the run measured, found {path} in {model} changed "
                "since it was committed; push another version, or train it again (stasc fork RUN NAME "
                "--from N-1). If the folder was copied, copy it with its times (cp -a)"
            )


def _goes(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether one pattern fits, in the same folder: `*.json` fits nothing in adapter/."""
    return any(PurePath(path).parent == PurePath(one).parent and fnmatch(path, one) for one in patterns)


def _sent(file: Path, path: str, base: str) -> Path | bytes:
    """The file; of a config that names paths of this machine, one that names the base model there."""
    if not path.endswith(".json") or any(fnmatch(path, one) for one in NO_CONFIGS):
        return file
    values = read_json(file)
    public = _public(values, "", base)
    return file if public == values else json.dumps(public, indent=2).encode()


def _public(value: Any, name: str, base: str) -> Any:
    """A value of a config without paths of this machine.

    Args:
        name: of its field.
        base: what the base model is called.
    """
    if isinstance(value, dict):
        return {key: one if _holds_words(key) else _public(one, key, base) for key, one in value.items()}
    if isinstance(value, list):
        return [_public(one, name, base) for one in value]
    if not isinstance(value, str) or not value:
        return value
    if name in PATHS or _is_path(value):
        return public_names.hub_id(value) or base
    return value


def _holds_words(name: str) -> bool:
    return name in WORDS or name.endswith(("_token", "_tokens"))


def _is_path(text: str) -> bool:
    """Whether a config's text is a path. One without a separator tells nothing but a name."""
    there = re.search(r"[/\\]", text) and re.search(r"\w", text) and os.path.lexists(text)
    return bool(LOCAL.fullmatch(text) or there)


@contextlib.contextmanager
def _hub_errors(repo: str, endpoint: str) -> Iterator[None]:
    """Say in one line what the Hub said, and what to do."""
    # HTTPError: httpx's in releases 1, httpx2's in 2
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        OfflineModeIsEnabled,
    )

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"stasc push: expected to reach {endpoint}, found offline mode; unset HF_HUB_OFFLINE"
        ) from error
    except HfHubHTTPError as error:
        raise _answered(error, repo, endpoint) from error
    except HTTPError as error:
        raise ConnectionError(
            f"stasc push: expected to reach the Hub at {endpoint}, found {error or type(error).__name__}; "
            "when it can be reached (HF_ENDPOINT, proxies), the same command sends it"
        ) from error


def _answered(error: Any, repo: str, endpoint: str) -> Exception:
    """What an answer of the Hub that is an error means."""
    status = error.response.status_code if error.response is not None else None
    said = re.sub(r"\s+", " ", getattr(error, "server_message", None) or str(error)).strip()
    if status == 401:
        return ValueError(
            f"stasc push: expected a token that {endpoint} knows, found that it refuses this one (401); "
            "`hf auth login` keeps a new one, or set HF_TOKEN"
        )
    if status == 403:
        return ValueError(
            f"stasc push: expected a token that may write to {repo}, found that it may not (403: {said}); "
            "use a token with write access, or a name of your own (hf auth whoami)"
        )
    return ConnectionError(
        f"stasc push: expected {endpoint} to take {repo}, found its error {status}: {said}; nothing of it "
        "is on the Hub unless a commit shows it, and the same command sends it again"
    )


@contextlib.contextmanager
def _left_empty(repo: str, is_new: bool) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_new:
            error.add_note(f"{repo} was made and is empty; the same command fills it")
        raise


def _size(what: Path | bytes) -> int:
    return len(what) if isinstance(what, bytes) else what.stat().st_size


def _readable(size: int) -> str:
    """Bytes as people say them."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
