"""The Grafana dashboard asks for nothing that /metrics does not have, and leaves nothing of it out."""

import json
import re
from pathlib import Path

from harness.scripted_api import Api
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).resolve().parents[2] / "cluster" / "grafana" / "endpoint.json"
METRIC = r"stasc_\w+"


def test_every_panel_asks_for_metrics_and_labels_that_the_endpoint_exports(tmp_path) -> None:
    api = Api(tmp_path)
    api.call("POST", "/v1/correct", json={"question": "Why?"})
    exported: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(api.call("GET", "/metrics").text):
        for sample in family.samples:
            exported.setdefault(sample.name, set()).update(sample.labels)
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked: set[str] = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression, name = target["expr"], f"{panel['title']}: {target['expr']}"
            metrics = set(re.findall(METRIC, expression))
            assert metrics and metrics <= exported.keys(), name
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            labels |= set(re.findall(r"(\w+)=~?\"", expression))
            for by in re.findall(r"by \(([^)]*)\)", expression):
                labels |= set(by.split(", "))
            for metric in metrics:
                assert labels <= exported[metric], name
            # a Prometheus that asks each pod has each replica as often as there are pods
            for before in re.split(METRIC, expression)[:-1]:
                assert "silent" in expression or re.search(r"max by \([^)]*\breplica\b", before), name
            asked |= metrics
    # histograms are shown by their buckets
    shown = {re.sub("_(bucket|sum|count)$", "", metric) for metric in asked}
    assert {re.sub("_(bucket|sum|count)$", "", metric) for metric in exported} == shown
    places = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places)) and max(x for x, _ in places) < 24, "panels overlap"
