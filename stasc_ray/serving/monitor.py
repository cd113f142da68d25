"""Prometheus metrics of a replica, and all replicas' metrics as one page with a label `replica`."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
SWAP_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 180, 300, 600)
PATIENCE_S = 3.0
"""With a replica that is asked for its metrics; Prometheus waits 10 s for the page."""


class Monitor:
    """What one replica counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "stasc_requests", "Answered requests by route and status", ["route", "status"], registry=registry
        )
        self.turns = Histogram(
            "stasc_turn_seconds",
            "Duration of a text by turn (answer, correction, ...)",
            ["turn"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token_s = Histogram(
            "stasc_first_token_seconds",
            "From a text's request to its first token, in the engine",
            ["turn"],
            buckets=SECONDS,
            registry=registry,
        )
        self.token_s = Histogram(
            "stasc_token_seconds",
            "Between two tokens of a text, its mean",
            ["turn"],
            buckets=TOKEN_SECONDS,
            registry=registry,
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
            "stasc_swap_seconds",
            "Preparing, verifying and activating a version",
            buckets=SWAP_SECONDS,
            registry=registry,
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
        self.engine_running = Gauge(
            "stasc_engine_running", "Sequences in vLLM's batch", ["version"], registry=registry
        )
        self.engine_waiting = Gauge(
            "stasc_engine_waiting", "Sequences in vLLM's queue", ["version"], registry=registry
        )
        self.kv_cache = Gauge(
            "stasc_kv_cache_usage", "Share of vLLM's KV cache in use", ["version"], registry=registry
        )

        self.keys_unreadable = Gauge(
            "stasc_keys_unreadable", "1 while the file of keys cannot be read", registry=registry
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


async def in_time(calls: Iterable[Awaitable[list[Metric]]]) -> tuple[list[list[Metric]], int]:
    """What replicas answered within PATIENCE_S, and how many did not."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    if not tasks:
        return [], 0
    done, late = await asyncio.wait(tasks, timeout=PATIENCE_S)
    for task in late:
        task.cancel()
    found = [task.result() for task in done if not (task.cancelled() or task.exception())]
    return found, len(tasks) - len(found)


def silence(replicas: int) -> Metric:
    """Says on the page that it lacks some."""
    return GaugeMetricFamily("stasc_silent_replicas", "Replicas that this page lacks", replicas)


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
