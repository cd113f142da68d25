"""Which version a replica should serve: a function of what is published, pinned, refused and running.

A version that fails is never served. It is remembered with its reason, and tried again when its files change,
or after a while if the cause may pass: storage or an engine in trouble.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.serving.published import Snapshot

RETRY_S, MAX_RETRY_S = 5.0, 600.0


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served, for these files, and when to try again (monotonic seconds)."""

    files: str | None
    reason: str
    retry_at: float = math.inf
    attempts: int = 1

    def stands(self, files: str | None, now: float) -> bool:
        """Whether there is nothing new to try; files that could not be read count as unchanged."""
        return now < self.retry_at and (None in (files, self.files) or files == self.files)


def refusal(error: Exception, files: str | None, before: Refusal | None, now: float) -> Refusal:
    """What follows from an error. One of storage or of an engine may pass: try again, ever more rarely."""
    said = isinstance(error, (EngineDiedError, OSError, ValueError)) and str(error)
    reason = str(error) if said else f"{type(error).__name__}: {error}"
    if not isinstance(error, (EngineDiedError, OSError)) and files is not None:
        return Refusal(files, reason)
    again = before and (None in (files, before.files) or files == before.files)
    attempts = before.attempts + 1 if before and again else 1
    return Refusal(files, reason, now + min(MAX_RETRY_S, RETRY_S * 2**attempts), attempts)


def decide(
    seen: Snapshot,
    pinned: str | None,
    refused: Mapping[str, Refusal],
    active: str | None,
    last: str | None,
    measures: Sequence[str],
    now: float,
) -> str | None:
    """The version that should answer; None if none can.

    It is the pinned one, else LATEST. Where that is refused, the version goes on that answers, or answered
    last. A replica that never answered takes LATEST, else the best on dev, else the newest.

    Args:
        pinned: the version that the endpoint is held to; None: LATEST.
        active: the version whose engine is up: it goes on from memory, whatever became of its files.
        last: the version that answered last; its engine may have died.
        measures: names after `evaluation/dev/` in a manifest's metrics; of each version the first one counts
            that it has.
    """

    def may_be(version: str) -> bool:
        found = refused.get(version)
        # unknown files are those that were refused: nobody has looked since
        return version in seen.manifests and not (
            found and found.stands(seen.files.get(version, found.files), now)
        )

    wanted = pinned or seen.latest
    if wanted and may_be(wanted):
        return wanted
    if active:
        return active
    fallbacks = [last, seen.latest, *_best_first(seen, measures)]
    return next((version for version in fallbacks if version and may_be(version)), None)


def _best_first(seen: Snapshot, measures: Sequence[str]) -> list[str]:
    def figure(version: str) -> float:
        metrics = seen.manifests[version].get("metrics", {})
        found = (metrics.get(f"evaluation/dev/{measure}") for measure in measures)
        return next((one for one in found if isinstance(one, int | float) and math.isfinite(one)), -math.inf)

    return sorted(seen.manifests, key=lambda version: (figure(version), version), reverse=True)
