"""How an error reaches a person: one message, an exit status, and where the logs are; the traceback only when
asked for.
"""

import contextlib
import re
import signal
import traceback
from collections.abc import Iterator

import typer

WRITABLE = "expected a folder that can be written to; choose another storage=... or --run-dir"
ADVICE = {
    "No space left on device": "the disk is full: free some space, and the same command continues",
    "Read-only file system": WRITABLE,
    "Permission denied": WRITABLE,
}
"""What to do about what the operating system says."""
SPEAKING = (ValueError, RuntimeError, OSError, ImportError, FloatingPointError)
"""Errors that are raised with a message for people; of others the type is told too."""
_CAUSED = "The above exception was the direct cause of the following exception"

EXIT_ERROR, EXIT_NOTHING_KEPT, EXIT_STOPPED = 1, 3, 130


@contextlib.contextmanager
def errors_for_people(debug: bool) -> Iterator[None]:
    """Turn an error into one message and an exit status; a stopped command says how to go on."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("stopped; what was committed is kept, and the same command continues from there", err=True)
        raise typer.Exit(EXIT_STOPPED) from None
    except Exception as error:  # the one place where every error ends: a message for a person
        if debug:
            traceback.print_exc()
        else:
            typer.echo(f"error: {message(error)}", err=True)
            for note in getattr(error, "__notes__", []):
                typer.echo(note, err=True)
        raise typer.Exit(
            EXIT_NOTHING_KEPT if type(error).__name__ == "NothingKeptError" else EXIT_ERROR
        ) from None


def message(error: BaseException) -> str:
    """What went wrong, without the layers that Ray puts around an error of a worker, and what to do about the
    usual ones.
    """
    text = _innermost(error)
    advice = [advice for sign, advice in ADVICE.items() if sign in text]
    return "; ".join([text, *advice])


def _innermost(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error.__cause__
    if type(error).__module__.startswith("ray."):
        if _CAUSED in str(error):  # the cause lost its type on the way between processes; its text is left
            return _raised(str(error).split(_CAUSED)[0])
        if isinstance(cause, BaseException):
            return _innermost(cause)
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    speaks = isinstance(error, SPEAKING) and str(error)
    return str(error) if speaks else f"{type(error).__name__}: {error}"


def _raised(trace: str) -> str:
    """The message at the end of a traceback's text."""
    found = list(re.finditer(r"^([A-Za-z_][\w.]*): ", trace, flags=re.MULTILINE))
    return trace[found[-1].end() :].strip() if found else trace.strip().splitlines()[-1]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
