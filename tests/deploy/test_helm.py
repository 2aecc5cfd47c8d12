"""The chart, rendered by Helm itself: its defaults are the base of kustomize, nonsense is refused, notes are shown."""

import http.server
import json
import platform
import shutil
import threading
import unittest

import yaml

import kit

CHART = kit.DEPLOY / "helm" / "evenkeel"


def normalised(objects):
    """The objects by kind and name, without what the two tools do differently on purpose."""
    found = {}
    for one in json.loads(json.dumps(objects)):
        # The chart leaves the namespace to `helm install -n`, the examples name it.
        one["metadata"].pop("namespace", None)
        forget_how_a_changed_configuration_is_noticed(one)
        found[one["kind"], one["metadata"]["name"]] = one
    return found


def forget_how_a_changed_configuration_is_noticed(one):
    """kustomize gives the ConfigMap a name with its hash, the chart gives the pods an annotation with it."""
    if one["kind"] == "ConfigMap" and "gateway.toml" in one["data"]:
        one["metadata"]["name"] = "evenkeel"
    if one["kind"] == "Deployment":
        template = one["spec"]["template"]
        template["metadata"]["annotations"].pop("evenkeel.io/config", None)
        for volume in template["spec"]["volumes"]:
            if "configMap" in volume:
                volume["configMap"]["name"] = "evenkeel"


def flat(value, path=""):
    """Every leaf of an object with its path."""
    if isinstance(value, dict):
        pairs = [(f"{path}.{key}", inner) for key, inner in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
    else:
        return {path: value}
    return {leaf: inner for name, value in pairs for leaf, inner in flat(value, name).items()}


class Equal(kit.Check):
    """An operator who changes from one to the other must not change anything by it."""

    def equal(self, kustomize, chart):
        left, right = normalised(kustomize), normalised(chart)
        self.assertEqual(sorted(left), sorted(right))
        differences = []
        for key, one in left.items():
            ours, theirs = flat(one), flat(right[key])
            differences += [f"{key} {path}: {ours.get(path)!r} and {theirs.get(path)!r}"
                            for path in sorted(ours.keys() | theirs.keys()) if ours.get(path) != theirs.get(path)]
        self.assertEqual(differences, [])

    def test_the_defaults_are_the_base(self):
        self.equal(kit.load_all(kit.overlay("base")), kit.load_all(kit.chart("defaults")))

    def test_redis_with_keda_and_monitoring_is_the_example(self):
        # The ingress is not the chart's business.
        example = [one for one in kit.load_all(kit.overlay("examples/redis")) if one["kind"] != "Ingress"]
        self.equal(example, kit.load_all(kit.chart("redis and KEDA")))

    def test_the_open_set_is_the_component(self):
        self.equal(kit.load_all(kit.overlay("openset")), kit.load_all(kit.chart("open set")))

    def test_nats_with_the_plain_autoscaler_is_the_example(self):
        example = [one for one in kit.load_all(kit.overlay("examples/nats")) if one["kind"] != "Ingress"]
        chart = kit.helm("--set", "backplane.kind=nats", "--set", "autoscaling.kind=hpa", "--set", "monitoring.enabled=true")
        self.equal(example, kit.load_all(chart))


class Values(kit.Check):
    def test_the_schema_refuses_nonsense(self):
        for nonsense, about in [
            ("replicas=0", "replicas"),
            ("replicas=many", "replicas"),
            ("backplane.kind=kafka", "kind"),
            ("backplane.nats.replicas=7", "replicas"),
            ("autoscaling.kind=vpa", "kind"),
            ("limits.maxConnections=-1", "maxConnections"),
            ("drain.windowSeconds=4m", "windowSeconds"),
            ("image.pullPolicy=Sometimes", "pullPolicy"),
            ("existingSecret=", "existingSecret"),
            ("log.format=xml", "format"),
            ("openSet.enabled=yes-please", "openSet"),
            ("replicaCount=3", "replicaCount"),
            ("drain.window=240", "window"),
        ]:
            with self.subTest(nonsense), self.assertRaisesRegex(AssertionError, rf"(?s)schema.*{about}"):
                kit.helm("--set", nonsense)

    def test_a_grace_period_shorter_than_the_drain_is_refused(self):
        with self.assertRaisesRegex(AssertionError, "pods would be killed while they drain"):
            kit.helm("--set", "drain.windowSeconds=600")

    def test_an_open_set_of_pods_that_share_nothing_is_refused(self):
        with self.assertRaisesRegex(AssertionError, "openSet.enabled needs a backplane that pods share"):
            kit.helm("--set", "openSet.enabled=true")

    def test_every_value_is_in_the_schema(self):
        schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
        values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
        self.assertEqual(sorted(values), sorted(set(schema["properties"]) - {"global"}))

    def test_further_configuration_reaches_the_gateway(self):
        more = self.write("more.toml", '[[namespaces]]\nname = "chat"\npresence = true\n')
        objects = kit.load_all(kit.helm("--set-file", f"config={more}"))
        self.assertIn(more.read_text(encoding="utf-8").strip(), kit.find(objects, "ConfigMap")["data"]["gateway.toml"])

    def test_the_helm_before_renders_the_same(self):
        if platform.machine() != "x86_64":
            # The only Helm is the one before: it was built.
            self.assertFalse(kit.HELM3.exists())
            return
        self.assertIn("v3.", kit.succeed(kit.HELM3, "version", "--short"))
        for name in kit.CHART_VALUES:
            with self.subTest(name):
                self.assertEqual(kit.load_all(kit.chart(name, kit.HELM3)), kit.load_all(kit.chart(name)))

    def test_the_chart_passes_helms_own_lint(self):
        kit.succeed(kit.HELM, "lint", "--strict", "--kube-version", kit.KUBERNETES[0], CHART)


class Cluster(http.server.BaseHTTPRequestHandler):
    """A cluster of which only the version is known: `helm install --dry-run` asks for it before it shows notes."""

    ANSWERS = {
        "/version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"},
        "/api": {"kind": "APIVersions", "versions": []},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    }

    def do_GET(self):
        answer = self.ANSWERS.get(self.path.partition("?")[0])
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer or {}).encode())

    def log_message(self, *_arguments):
        """Nothing is to be printed."""


class Notes(kit.Check):
    def setUp(self):
        super().setUp()
        self.cluster = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
        threading.Thread(target=self.cluster.serve_forever, daemon=True).start()
        self.addCleanup(self.cluster.server_close)
        self.addCleanup(self.cluster.shutdown)

    def notes(self, *arguments):
        """What `helm install` shows at its end, of the chart without its objects, whose kinds it would look up."""
        chart = self.directory / "evenkeel"
        if not chart.exists():
            shutil.copytree(CHART, chart)
            for template in (chart / "templates").glob("*.yaml"):
                template.unlink()
        shown = kit.succeed(
            kit.HELM, "install", "evenkeel", chart, "--namespace", "evenkeel", "--dry-run=client",
            "--kube-apiserver", f"http://127.0.0.1:{self.cluster.server_port}", *arguments)
        return shown.split("NOTES:", 1)[1]

    def test_they_say_where_clients_and_the_backend_connect(self):
        notes = self.notes("--set", "backplane.kind=redis", "--set", "existingSecret=mine")
        self.assertIn("http://evenkeel-internal.evenkeel:9000/api with a key from the Secret `mine`", notes)
        self.assertNotIn("WARNING", notes)

    def test_they_warn_of_several_pods_that_share_nothing(self):
        self.assertNotIn("WARNING", self.notes())
        self.assertIn("WARNING", self.notes("--set", "replicas=2"))
        self.assertIn("WARNING", self.notes("--set", "autoscaling.kind=keda"))


if __name__ == "__main__":
    unittest.main()
