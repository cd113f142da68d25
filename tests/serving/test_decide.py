"""Which version should answer, and what a refusal means."""

import pytest

from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.serving.decide import MAX_RETRY_S, Refusal, decide, refusal
from stasc_ray.serving.published import Snapshot

MEASURES = ("base/r_y2", "r_y2")


def snapshot(latest: str | None = "v3", **files: str) -> Snapshot:
    """Versions 1 to 4; v2 is the best on dev."""
    figures = {"v1": 0.1, "v2": 0.5, "v3": 0.4, "v4": None}
    manifests = {
        version: {"version": version, "metrics": {"evaluation/dev/r_y2": figure}}
        for version, figure in figures.items()
    }
    return Snapshot(manifests=manifests, latest=latest, files=files)


def broken(*versions: str, files: str = "old") -> dict[str, Refusal]:
    return {version: Refusal(files, "broken") for version in versions}


@pytest.mark.parametrize(
    ("seen", "pinned", "refused", "active", "last", "expected"),
    [
        (snapshot(), None, {}, None, None, "v3"),
        (snapshot(), None, {}, "v1", "v1", "v3"),
        (snapshot(), "v1", {}, "v3", "v3", "v1"),
        (snapshot(), None, broken("v3"), "v1", "v1", "v1"),  # what answers goes on
        (snapshot(), None, broken("v3"), None, "v1", "v1"),  # what answered last is started again
        (snapshot(), None, broken("v3"), None, None, "v2"),  # best on dev, not the newest
        (snapshot(), "v1", broken("v1"), None, None, "v3"),  # LATEST where a pin is broken
        (snapshot(), "v9", {}, None, None, "v3"),
        (snapshot(), "v9", {}, "v2", "v2", "v2"),
        (snapshot(), None, broken("v3", "v2"), None, None, "v1"),
        (snapshot(), None, broken("v3", "v2", "v1"), None, None, "v4"),
        (snapshot(), None, broken("v1", "v2", "v3", "v4"), None, None, None),
        (snapshot(), None, broken("v1", "v2", "v3", "v4"), "v4", "v4", "v4"),
        (snapshot(latest=None), None, {}, None, None, "v2"),
        (snapshot(v3="new"), None, broken("v3"), "v1", "v1", "v3"),  # its files were corrected
        (snapshot(v3="old"), None, broken("v3"), "v1", "v1", "v1"),
        (Snapshot(), None, {}, None, None, None),
        (Snapshot(), None, {}, "v1", "v1", "v1"),
    ],
)
def test_the_wanted_version_and_where_it_is_refused_another(
    seen, pinned, refused, active, last, expected
) -> None:
    assert decide(seen, pinned, refused, active, last, MEASURES, now=0.0) == expected


def test_a_figure_on_m0s_answers_counts_before_one_on_its_own() -> None:
    seen = snapshot(latest=None)
    seen.manifests["v1"]["metrics"]["evaluation/dev/base/r_y2"] = 0.6
    seen.manifests["v4"]["metrics"]["evaluation/dev/r_y2"] = float("nan")
    assert decide(seen, None, {}, None, None, MEASURES, now=0.0) == "v1"
    assert decide(seen, None, {}, None, None, ("r_y2",), now=0.0) == "v2"


def test_a_refusal_stands_until_the_files_change_or_where_the_cause_may_pass_for_a_while() -> None:
    for error in (ValueError("another tokenizer"), KeyError("n_prompt"), RuntimeError("bug")):
        found = refusal(error, "files", None, now=100.0)
        assert found.stands("files", now=1e9) and not found.stands("other files", now=101.0)
    assert "KeyError" in refusal(KeyError("n_prompt"), "files", None, 0.0).reason
    for error in (EngineDiedError("gone"), OSError(116, "Stale file handle")):
        waits, before = [], None
        for _ in range(9):
            before = refusal(error, "files", before, now=100.0)
            assert before.stands("files", before.retry_at - 1) and not before.stands("files", before.retry_at)
            waits.append(before.retry_at - 100.0)
        assert waits[:3] == [10.0, 20.0, 40.0] and waits[-1] == MAX_RETRY_S
        assert refusal(error, "other files", before, now=0.0).attempts == 1
