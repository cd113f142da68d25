"""How an error reaches a person: one message, an exit status, and where the logs are; the traceback only when asked for."""

import contextlib
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path

import typer

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
        raise typer.Exit(EXIT_NOTHING_KEPT if type(error).__name__ == "NothingKeptError" else EXIT_ERROR) from None


@contextlib.contextmanager
def naming_logs(logs: Path) -> Iterator[None]:
    """Add to an error where Ray's and vLLM's own logs are."""
    try:
        yield
    except Exception as error:
        error.add_note(f"Ray's and vLLM's logs: {logs} (--debug shows the traceback)")
        raise


def message(error: BaseException) -> str:
    """What went wrong, without the layers that Ray puts around an error of a worker."""
    cause = getattr(error, "cause", None) or error.__cause__
    if type(error).__module__.startswith("ray.") and isinstance(cause, BaseException):
        return message(cause)
    if type(error).__module__.startswith("ray."):
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    return (
        str(error) if isinstance(error, (ValueError, RuntimeError, OSError)) and str(error) else f"{type(error).__name__}: {error}"
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
