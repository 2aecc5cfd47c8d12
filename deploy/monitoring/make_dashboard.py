#!/usr/bin/env python3
"""Writes dashboard.json: the rows and panels below, laid out. Run it after a change, and copy the
file to the component monitoring and to the Helm chart."""

import json
import pathlib

BY_POD = "{{pod}}"
HERE = 'namespace=~"$namespace"'

ROWS = [
    ("Fleet", [
        ("stat", "Connections", "short", [("max(gateway_fleet_connections{%s})", "")]),
        ("stat", "Nodes", "short", [("max by (state) (gateway_cluster_nodes{%s})", "{{state}}")]),
        ("stat", "Imbalance (fullest / average)", "short",
         [("max(gateway_connections{%s}) / avg(gateway_connections{%s})", "")]),
        ("stat", "Backplane", "short", [("min(gateway_backplane_up{%s})", "1 is up")]),
    ]),
    ("Load of each pod", [
        ("bars", "Connections, side by side", "short", [("gateway_connections{%s}", BY_POD)]),
        ("lines", "Connections", "short", [("gateway_connections{%s}", BY_POD)]),
        ("lines", "CPU cores", "short", [("rate(process_cpu_seconds_total{%s}[1m])", BY_POD)]),
        ("lines", "Resident memory", "bytes", [("process_resident_memory_bytes{%s}", BY_POD)]),
    ]),
    ("Coming and going", [
        ("lines", "Connects by result", "cps", [("sum by (result) (rate(gateway_connects_total{%s}[1m]))", "{{result}}")]),
        ("lines", "Closes by code", "cps", [("sum by (code) (rate(gateway_disconnects_total{%s}[1m]))", "{{code}}")]),
        ("lines", "Left to drain", "short", [("gateway_drain_remaining{%s} > 0", BY_POD)]),
        ("lines", "Recoveries, and history reads for them", "cps", [
            ("sum(rate(gateway_recoveries_total{%s}[1m]))", "recoveries"),
            ("sum(rate(gateway_recovery_reads_total{%s}[1m]))", "reads")]),
    ]),
    ("Levelling", [
        ("lines", "Fullest / mean, as the fleet counts", "short", [("max(gateway_cluster_imbalance_ratio{%s})", "")]),
        ("lines", "Connections moved", "cps", [("sum by (reason) (rate(gateway_moves_total{%s}[1m]))", "{{reason}}")]),
        ("lines", "Pace of each pod", "cps", [("gateway_move_rate{%s}", BY_POD)]),
        ("lines", "Connects turned away", "cps",
         [("sum by (result) (rate(gateway_connects_total{%s, result!=\"established\"}[1m]))", "{{result}}")]),
    ]),
    ("Open set", [
        ("lines", "Since it was last written", "s", [("max(gateway_openset_age_seconds{%s})", "")]),
        ("lines", "Pods open, and that could be", "short", [("max(gateway_openset_size{%s})", "open"),
                                                            ("max(gateway_openset_ready_nodes{%s})", "could be")]),
        ("lines", "Who writes it", "short", [("gateway_openset_writer{%s} > 0", BY_POD)]),
        ("lines", "Calls to the API server that failed", "cps",
         [("sum by (reason) (rate(gateway_kubernetes_call_failures_total{%s}[1m]))", "{{reason}}")]),
    ]),
    ("Delivery", [
        ("lines", "Deliveries", "cps", [("sum(rate(gateway_deliveries_total{%s}[1m]))", "deliveries"),
                                        ("sum(rate(gateway_messages_received_total{%s}[1m]))", "commands received")]),
        ("lines", "Publish latency", "s", [
            ("histogram_quantile(%s, sum by (le) (rate(gateway_publish_seconds_bucket{%%s}[1m])))" % q, n)
            for q, n in (("0.5", "p50"), ("0.99", "p99"))]),
        ("lines", "Fan-out latency", "s", [
            ("histogram_quantile(%s, sum by (le) (rate(gateway_fanout_seconds_bucket{%%s}[1m])))" % q, n)
            for q, n in (("0.5", "p50"), ("0.99", "p99"))]),
        ("lines", "Bytes queued for slow peers", "bytes", [("gateway_queue_bytes{%s}", BY_POD)]),
    ]),
    ("Truth", [
        ("lines", "Gaps", "cps", [("sum by (outcome) (rate(gateway_gaps_total{%s}[1m]))", "{{outcome}}")]),
        ("lines", "Dropped because a pod was behind", "cps", [
            ("sum(rate(gateway_inbox_dropped_total{%s}[1m]))", "between shards"),
            ("sum(rate(gateway_backplane_deliveries_lost_total{%s}[1m]))", "from the backplane")]),
        ("lines", "Publishes that failed", "cps", [("sum(rate(gateway_publish_errors_total{%s}[1m]))", "")]),
        ("lines", "Requests of the server API", "cps",
         [("sum by (method, result) (rate(gateway_api_requests_total{%s}[1m]))", "{{method}} {{result}}")]),
    ]),
    ("Backplane", [
        ("lines", "Reachable", "short", [("gateway_backplane_up{%s}", BY_POD)]),
        ("lines", "Calls", "cps", [("sum(rate(gateway_backplane_calls_total{%s}[1m]))", "calls"),
                                   ("sum by (reason) (rate(gateway_backplane_call_failures_total{%s}[1m]))", "failed: {{reason}}")]),
        ("lines", "Calls under way", "short", [("gateway_backplane_calls_in_flight{%s}", BY_POD)]),
        ("lines", "Channels subscribed", "short", [("gateway_backplane_channels{%s}", BY_POD)]),
    ]),
]


def panel(number, kind, title, unit, queries, x, y):
    made = {
        "id": number,
        "title": title,
        "type": {"stat": "stat", "bars": "bargauge", "lines": "timeseries"}[kind],
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": 6, "h": 5 if kind == "stat" else 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + index), "expr": expression.replace("%s", HERE), "legendFormat": legend,
             **({"instant": True} if kind != "lines" else {})}
            for index, (expression, legend) in enumerate(queries)
        ],
    }
    if kind == "bars":
        made["options"] = {"orientation": "horizontal", "displayMode": "basic"}
    return made


def dashboard():
    panels, number, y = [], 1, 0
    for title, row in ROWS:
        panels.append({"id": number, "title": title, "type": "row", "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
                       "collapsed": False, "panels": []})
        number, y = number + 1, y + 1
        for index, (kind, name, unit, queries) in enumerate(row):
            panels.append(panel(number, kind, name, unit, queries, 6 * index, y))
            number += 1
        y += panels[-1]["gridPos"]["h"]
    variable = {"type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"}, "refresh": 2}
    return {
        "uid": "evenkeel",
        "title": "Evenkeel",
        "tags": ["evenkeel"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus"},
            {"name": "namespace", "label": "Namespace", "includeAll": True, "allValue": ".*", "multi": True,
             "query": "label_values(gateway_connections, namespace)", **variable},
        ]},
        "panels": panels,
    }


if __name__ == "__main__":
    target = pathlib.Path(__file__).with_name("dashboard.json")
    target.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
