"""Whatever is published, broken, pinned, refused or dies: what `decide` lets a replica serve.

A replica of one line, with a clock of its own: it moves to what `decide` says, and what it finds there is a
refusal or an engine. hypothesis looks for the sequence of events that breaks a promise.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.serving.decide import MAX_RETRY_S, RETRY_S, Refusal, decide, refusal
from stasc_ray.serving.published import Snapshot

MEASURES = ("r_y2",)
FAULTS = {
    "wrong canary": lambda: ValueError("wrong canary"),
    "storage": lambda: OSError(116, "Stale file handle"),
    "no memory": lambda: EngineDiedError("no memory"),
}
PASSING = ("storage", "no memory")
faults = st.none() | st.sampled_from(sorted(FAULTS))
figures = st.none() | st.floats(0, 1) | st.just(float("nan"))


class Replica(RuleBasedStateMachine):
    """Published versions with what is wrong with their files, a pin, and one replica."""

    @initialize(published=st.lists(st.tuples(figures, faults), max_size=4))
    def begin(self, published: list[tuple[float | None, str | None]]) -> None:
        self.now = 0.0
        self.latest: str | None = None
        self.pinned: str | None = None
        self.manifests: dict[str, dict[str, object]] = {}
        self.files: dict[str, str] = {}
        self.faults: dict[str, str] = {}
        self.refused: dict[str, Refusal] = {}
        self.tried: dict[str, tuple[str, str, float]] = {}  # with which files, what was wrong, when
        self.active: str | None = None
        self.last: str | None = None
        for figure, fault in published:
            self.publish(figure, fault)

    def wanted(self) -> str | None:
        seen = Snapshot(manifests=self.manifests, latest=self.latest, files=self.files)
        return decide(seen, self.pinned, self.refused, self.active, self.last, MEASURES, self.now)

    def stands_refused(self, version: str) -> bool:
        found = self.refused.get(version)
        return found is not None and found.stands(self.files.get(version), self.now)

    @rule(figure=figures, fault=faults)
    def publish(self, figure: float | None, fault: str | None) -> None:
        self.latest = f"v{len(self.files):04d}"
        metrics = {"evaluation/dev/r_y2": figure}
        self.manifests[self.latest] = {"version": self.latest, "metrics": metrics}
        self.files[self.latest] = "first"
        if fault:
            self.faults[self.latest] = fault

    @precondition(lambda self: self.faults)
    @rule(data=st.data())
    def correct_files(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.faults)))
        self.files[version] += "+"
        del self.faults[version]

    @precondition(lambda self: self.files)
    @rule(data=st.data(), fault=st.sampled_from(sorted(FAULTS)))
    def spoil_files(self, data: st.DataObject, fault: str) -> None:
        version = data.draw(st.sampled_from(sorted(self.files)))
        self.files[version] += "+"
        self.faults[version] = fault

    @precondition(lambda self: self.faults)
    @rule(data=st.data())
    def trouble_passes(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.faults)))
        if self.faults[version] in PASSING:
            del self.faults[version]

    @precondition(lambda self: self.manifests)
    @rule(data=st.data())
    def delete_manifest(self, data: st.DataObject) -> None:
        del self.manifests[data.draw(st.sampled_from(sorted(self.manifests)))]

    @rule(number=st.none() | st.integers(0, 8))
    def pin(self, number: int | None) -> None:
        self.pinned = None if number is None else f"v{number:04d}"

    @rule()
    def engine_dies(self) -> None:
        self.active = None

    @rule(seconds=st.sampled_from([0.1, 10.0, MAX_RETRY_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def move(self) -> None:
        before, version = self.active, self.wanted()
        if version in (None, before):
            return
        files, (tried, why, when) = self.files[version], self.tried.get(version, ("", "", 0.0))
        if tried == files:
            assert why in PASSING and self.now >= when + 2 * RETRY_S, "a refused version was tried again"
        if version in self.faults:
            error = FAULTS[self.faults[version]]()
            self.tried[version] = files, self.faults[version], self.now
            self.refused[version] = refusal(error, files, self.refused.get(version), self.now)
            return
        self.refused.pop(version, None)
        self.tried.pop(version, None)
        self.active = self.last = version

    @invariant()
    def never_refused_and_never_beside_the_pin(self) -> None:
        version = self.wanted()
        if version is None:
            assert self.active is None
            assert all(map(self.stands_refused, self.manifests)), "a version could answer"
            return
        assert version == self.active or (version in self.manifests and not self.stands_refused(version))
        held_to = self.pinned or self.latest
        if held_to in self.manifests and not self.stands_refused(held_to):
            assert version == held_to
        elif self.active:
            assert version == self.active, "what answers goes on where the wanted one cannot"

    @invariant()
    def at_last_the_wanted_version(self) -> None:
        """If nothing more happens but that time passes, it ends at the wanted version, or stays where it is."""
        kept = dict(self.refused), dict(self.tried), self.active, self.last, self.now
        for _ in range(len(self.files) + 1):
            self.now += MAX_RETRY_S
            self.move()
        held_to = self.pinned or self.latest
        whole = [version for version in self.manifests if version not in self.faults]
        before = kept[2]
        if held_to in whole:
            assert self.active == held_to
        else:
            assert self.active == before if before else self.active in (*whole, None)
        self.refused, self.tried, self.active, self.last, self.now = kept


TestReplica = Replica.TestCase
TestReplica.settings = settings(max_examples=300, stateful_step_count=20, deadline=None, derandomize=True)
