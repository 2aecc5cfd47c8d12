"""Rules and dashboard: promtool likes them, their copies are the same, and they ask for nothing that no gateway exports."""

import json
import re
import signal
import unittest

import yaml

import kit
import servers

MONITORING = kit.DEPLOY / "monitoring"
COMPONENT = kit.DEPLOY / "kustomize" / "components" / "monitoring"
CHART_FILES = kit.DEPLOY / "helm" / "evenkeel" / "files"

# Labels that Prometheus gives to what it scrapes.
TARGET_LABELS = {"namespace", "pod"}

# What only pods of a cluster export. That they do is asserted in tests/tests/kubernetes_openset.rs, where they have one.
OF_PODS = {
    "gateway_openset_age_seconds", "gateway_openset_size", "gateway_openset_ready_nodes", "gateway_openset_writer",
    "gateway_kubernetes_call_failures_total"}


def rules():
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries():
    """Everything that is asked: where, and the expression."""
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for name in ["keda", "examples/redis"]:
        for trigger in kit.find(kit.load_all(kit.overlay(name)), "ScaledObject")["spec"]["triggers"]:
            yield f"autoscaler of {name}", trigger["metadata"]["query"]
    for name in ["hpa"]:
        autoscaler = kit.find(kit.load_all(kit.overlay(name)), "HorizontalPodAutoscaler")
        for metric in autoscaler["spec"]["metrics"]:
            if metric["type"] == "External":
                yield f"autoscaler of {name}", metric["external"]["metric"]["name"]


def selectors(expression):
    """The metrics of an expression with the labels that they are chosen by: `[(name, {label, ...})]`."""
    text = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expression)
    found = []
    for name, matchers in re.findall(r"\b([a-zA-Z_][a-zA-Z0-9_]*(?::[a-zA-Z0-9_:]+)?)\b(?!\s*\()(\{[^}]*\})?", re.sub(
            r"\[[^\]]*\]", " ", text)):
        if "_" in name or ":" in name:
            found.append((name, set(re.findall(r"(\w+)\s*[=!]~?", matchers))))
    # Names within matchers and strings are no metrics.
    inner = set(re.findall(r"\w+", " ".join(re.findall(r"\{[^}]*\}|\"[^\"]*\"", text))))
    return [(name, labels) for name, labels in found if name not in inner]


def exported(text):
    """The series of an exposition: the names with the labels that each has."""
    series = {}
    for name, labels in re.findall(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? ", text, re.MULTILINE):
        series.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return series


class Promtool(kit.Check):
    def test_rules_are_valid(self):
        kit.succeed("promtool", "check", "rules", "--lint=all", "--lint-fatal", MONITORING / "rules.yaml")

    def test_the_unit_tests_of_the_rules_pass(self):
        kit.succeed("promtool", "test", "rules", MONITORING / "rules_test.yaml")

    def test_every_alert_has_a_unit_test(self):
        tests = yaml.safe_load((MONITORING / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]
        tested = {one["alertname"] for test in tests for one in test.get("alert_rule_test", []) if one.get("exp_alerts")}
        self.assertEqual({rule["alert"] for rule in rules() if "alert" in rule} - tested, set())

    def test_the_configuration_of_compose_is_valid(self):
        for name, source in [("prometheus.yml", kit.DEPLOY / "compose"), ("rules.yaml", MONITORING)]:
            self.write(name, (source / name).read_text(encoding="utf-8"))
        kit.succeed("promtool", "check", "config", self.directory / "prometheus.yml")


class Copies(kit.Check):
    def test_the_rules_are_the_same_everywhere(self):
        plain = (MONITORING / "rules.yaml").read_text(encoding="utf-8")
        self.assertEqual(plain, (CHART_FILES / "rules.yaml").read_text(encoding="utf-8"))
        component = yaml.safe_load((COMPONENT / "prometheusrule.yaml").read_text(encoding="utf-8"))
        self.assertEqual(component["spec"], yaml.safe_load(plain))

    def test_the_dashboard_is_the_same_everywhere(self):
        plain = (MONITORING / "dashboard.json").read_text(encoding="utf-8")
        for copy in [COMPONENT, CHART_FILES]:
            self.assertEqual(plain, (copy / "dashboard.json").read_text(encoding="utf-8"))

    def test_the_dashboard_is_what_its_program_writes(self):
        program = self.write("make_dashboard.py", (MONITORING / "make_dashboard.py").read_text(encoding="utf-8"))
        kit.succeed("python3", program)
        self.assertEqual(
            (self.directory / "dashboard.json").read_text(encoding="utf-8"),
            (MONITORING / "dashboard.json").read_text(encoding="utf-8"))


class Exported(kit.Check):
    """Everything that is asked for is there, on a node that has had its share of events."""

    def test_expressions_are_understood(self):
        self.assertEqual(
            selectors('sum by (namespace, le) (rate(a_bucket{b_c="d_e", pod=~"x"}[5m])) > on (x_y) group_left () n:o:p and f_g'),
            [("a_bucket", {"b_c", "pod"}), ("n:o:p", set()), ("f_g", set())])

    def test_every_metric_of_rules_dashboard_and_autoscalers_is_exported(self):
        series = exported(self.eventful_node())
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        asked = [(where, name, labels) for where, expression in queries() for name, labels in selectors(expression)]
        self.assertGreater(len(asked), 40)
        for where, name, labels in asked:
            with self.subTest(where=where, metric=name):
                if name in recorded or name in OF_PODS:
                    continue
                self.assertIn(name, series)
                self.assertEqual(labels - series[name] - TARGET_LABELS, set(), "labels that it does not have")

    def test_what_only_pods_export_is_asserted_where_there_are_some(self):
        sources = [kit.ROOT / "tests" / name for name in ["tests/kubernetes_openset.rs", "src/pods.rs"]]
        asserted = "".join(source.read_text(encoding="utf-8") for source in sources)
        self.assertEqual({name for name in OF_PODS if f'"{name}' not in asserted}, set())
        asked = {name for _, expression in queries() for name, _ in selectors(expression)}
        self.assertEqual(OF_PODS - asked, set(), "asked for by nobody")

    def eventful_node(self):
        """What a node on Redis exports after connects, publishes and closes, and while it drains."""
        redis = servers.Redis(self)
        node = servers.Gateway(self, redis.port, EVENKEEL_DRAIN__WINDOW="20s", EVENKEEL_LIMITS__MAX_CONNECTIONS="20")
        clients = [servers.Client(self, node, node.token(user)) for user in ["ann", "bob", "cid", "dan"]]
        clients[0].command(2, subscribe={"channel": "a"})
        node.api("publish", channel="a", data={})
        node.api("disconnect", user="dan")
        servers.until("a close by its code", lambda: "gateway_disconnects_total{" in node.metrics())
        servers.until("the process to be measured", lambda: node.metric("process_cpu_seconds_total") is not None)
        servers.until("the total of the fleet", lambda: node.metric("gateway_fleet_connections") == 3)
        before = node.metrics()
        node.signal(signal.SIGTERM)
        servers.until("the drain", lambda: node.metric("gateway_drain_remaining"))
        return before + node.metrics()


if __name__ == "__main__":
    unittest.main()
