"""Prometheus metrics of a replica, and all replicas' metrics as one page with a label `replica`."""

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Monitor:
    """What one replica counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "stasc_requests", "Answered requests by route and status", ["route", "status"], registry=registry
        )
        self.turns = Histogram(
            "stasc_turn_seconds", "Duration of a turn", ["turn"], buckets=SECONDS, registry=registry
        )
        self.queue_s = Histogram(
            "stasc_queue_seconds", "Time until a question was begun", buckets=SECONDS, registry=registry
        )
        self.tokens = Counter(
            "stasc_tokens", "Tokens by kind (prompt, completion)", ["kind"], registry=registry
        )
        self.corrected = Counter(
            "stasc_corrected", "Corrected answers by whether they changed", ["changed"], registry=registry
        )
        self.in_flight = Gauge("stasc_in_flight", "Questions that are worked on", registry=registry)
        self.queued = Gauge("stasc_queued", "Questions that wait", registry=registry)
        self.version = Gauge(
            "stasc_active_version", "1 for the version that answers", ["version"], registry=registry
        )
        self.swaps = Histogram(
            "stasc_swap_seconds", "Preparing, verifying and activating a version", registry=registry
        )
        self.refused = Counter("stasc_refused_versions", "Versions that were not served", registry=registry)
        self.canary_failures = Counter(
            "stasc_canary_failures", "Versions that failed their canary", registry=registry
        )
        self.retries = Counter(
            "stasc_retries", "Requests begun again after their engine died", registry=registry
        )
        self.engine_starts = Gauge(
            "stasc_engine_starts", "Engines started by this replica", registry=registry
        )

    def observe(self, what: str, value: float) -> None:
        """Count what `Versions` reports: swap (seconds), refused, canary_failure."""
        match what:
            case "swap":
                self.swaps.observe(value)
            case "refused":
                self.refused.inc(value)
            case "canary_failure":
                self.canary_failures.inc(value)

    def families(self, replica: str) -> list[Metric]:
        """All samples, each labelled with the replica's name."""
        families = []
        for family in self.registry.collect():
            labelled = Metric(family.name, family.documentation, family.type)
            for sample in (sample for sample in family.samples if not sample.name.endswith("_created")):
                labelled.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
            families.append(labelled)
        return families


class _Families:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def as_page(per_replica: Iterable[list[Metric]]) -> bytes:
    """Prometheus' text format, one family for the same metric of all replicas."""
    merged: dict[str, Metric] = {}
    for families in per_replica:
        for family in families:
            known = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples.extend(family.samples)
    registry: Any = _Families(merged.values())
    return generate_latest(registry)
