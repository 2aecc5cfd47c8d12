"""What kustomize and Helm render is valid, by schemas that others have published, and the gateway takes the configuration in it."""

import json
import os
import re
import unittest

import kubernetes_validate
import yaml

import kit

# Where the schemas of objects are that Kubernetes itself does not have.
MODELS = "@kubernetes-models"
PUBLISHED = {
    "keda.sh/v1alpha1": f"{MODELS}/keda/keda.sh/v1alpha1",
    "monitoring.coreos.com/v1": f"{MODELS}/prometheus-operator/monitoring.coreos.com/v1",
    "gateway.networking.k8s.io/v1": f"{MODELS}/gateway-api/gateway.networking.k8s.io/v1",
    "networking.istio.io/v1": f"{MODELS}/istio/networking.istio.io/v1",
}


class Kubernetes(kit.Check):
    def test_objects_of_kubernetes_are_valid_in_every_version(self):
        # Most renderings have the same objects.
        different = {}
        for name, objects in kit.every_rendering():
            for one in objects:
                if one["apiVersion"] not in PUBLISHED:
                    different.setdefault(json.dumps(one, sort_keys=True), (name, one))
        self.assertGreater(len(different), 20)
        for version in kit.KUBERNETES:
            for name, one in different.values():
                with self.subTest(rendering=name, kind=one["kind"], version=version):
                    kubernetes_validate.validate(one, version, strict=True)

    def test_a_wrong_field_is_found(self):
        wrong = kit.find(kit.load_all(kit.overlay("base")), "Deployment")
        wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, kit.KUBERNETES[0], strict=True)


class Published(kit.Check):
    """Objects of KEDA, the Prometheus operator, the Gateway API and Istio, by schemas from their own sources."""

    def objects(self):
        for name, objects in kit.every_rendering():
            for one in objects:
                if one["apiVersion"] in PUBLISHED:
                    yield name, one

    def test_values_are_valid(self):
        objects = [one for _, one in self.objects()]
        kinds = {one["kind"] for one in objects}
        self.assertEqual(
            kinds, {"ScaledObject", "PodMonitor", "PrometheusRule", "HTTPRoute", "VirtualService", "DestinationRule"})
        self.assertEqual(self.invalid(objects), [])

    def test_every_field_is_known(self):
        self.assertEqual(self.unknown([one for _, one in self.objects()]), [])

    def test_mistakes_are_found(self):
        scaled = kit.find(kit.load_all(kit.overlay("keda")), "ScaledObject")
        del scaled["spec"]["fallback"]["failureThreshold"]
        self.assertIn("failureThreshold", " ".join(self.invalid([scaled])))
        scaled = kit.find(kit.load_all(kit.overlay("keda")), "ScaledObject")
        scaled["spec"]["minReplicas"] = 3
        self.assertIn("minReplicas", " ".join(self.unknown([scaled])))

    def invalid(self, objects):
        asked = json.dumps([{"module": f"{PUBLISHED[one['apiVersion']]}/{one['kind']}", "object": one} for one in objects])
        return json.loads(kit.succeed(kit.NODE, kit.HERE / "validate.js", input=asked))

    def unknown(self, objects):
        """The schemas allow fields that they do not know; their types, to which a compiler holds literals, do not."""
        lines = []
        for index, one in enumerate(objects):
            kind = one["kind"]
            lines.append(f"import type {{ I{kind} as Type{index} }} from '{PUBLISHED[one['apiVersion']]}/{kind}';")
            lines.append(f"export const object{index}: Type{index} = {json.dumps(one)};")
        # Imports are looked up from where the file is.
        source = kit.HERE / "node_modules" / f".objects-{os.getpid()}.mts"
        source.write_text("\n".join(lines), encoding="utf-8")
        self.addCleanup(source.unlink, missing_ok=True)
        done = kit.run(
            kit.NODE, kit.HERE / "node_modules" / "typescript" / "bin" / "tsc", "--noEmit", "--skipLibCheck", "--strict",
            "--module", "nodenext", "--moduleResolution", "nodenext", source)
        self.assertEqual(done.stderr, "")
        return done.stdout.splitlines()


class Configuration(kit.Check):
    """A pod that cannot read its configuration fails where a test would have told."""

    def test_the_gateway_takes_what_is_in_every_manifest(self):
        for name, objects in kit.every_rendering():
            deployment = kit.find(objects, "Deployment")
            container = deployment["spec"]["template"]["spec"]["containers"][0]
            self.assertEqual(container["args"], ["--config", "/etc/evenkeel/gateway.toml"])
            text = self.config_map(objects)["gateway.toml"]
            env = kit.environment(container)
            with self.subTest(rendering=name):
                self.check_config(text, env)

    def test_a_mistake_in_it_is_found(self):
        text = self.config_map(kit.load_all(kit.overlay("base")))["gateway.toml"]
        with self.assertRaisesRegex(AssertionError, "drain.windw"):
            self.check_config(text.replace("window =", "windw ="), {})

    def test_the_unit_of_systemd_gives_it_a_configuration(self):
        unit = (kit.DEPLOY / "systemd" / "evenkeel.service").read_text(encoding="utf-8")
        env = dict(re.findall(r"^Environment=([^=]+)=(.*)$", unit, re.MULTILINE))
        credentials = re.findall(r"^LoadCredential=([^:]+):", unit, re.MULTILINE)
        self.assertEqual(sorted(value.removeprefix("%d/") for value in env.values()), sorted(credentials))
        self.check_config("", {name: value.replace("%d", kit.SECRETS) for name, value in env.items()})

    def test_the_guide_gives_it_a_configuration(self):
        guide = (kit.DEPLOY / "README.md").read_text(encoding="utf-8")
        examples = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
        self.assertEqual(len(examples), 2)
        for example in examples:
            self.check_config(example, {"EVENKEEL_API_KEY": "a" * 24, "EVENKEEL_TOKEN_HMAC_SECRET": "b" * 32})

    def test_compose_gives_it_a_configuration(self):
        text = (kit.DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8")
        for kind in ["redis", "nats"]:
            env = yaml.safe_load(text)["services"]["gw1"]["environment"]
            env = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in env.items()}
            self.check_config("", env | {"EVENKEEL_BACKPLANE__KIND": kind})

    def test_pods_have_time_for_their_drain(self):
        for name, objects in kit.every_rendering():
            with self.subTest(rendering=name):
                pod = kit.find(objects, "Deployment")["spec"]["template"]["spec"]
                text = self.config_map(objects)["gateway.toml"]
                grace_accept, window = (
                    int(re.search(rf'^{key} = "(\d+)s"$', text, re.MULTILINE)[1]) for key in ["grace_accept", "window"])
                self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], grace_accept + window + 10)

    def test_the_internal_port_is_never_exposed(self):
        for name, objects in kit.every_rendering():
            with self.subTest(rendering=name):
                services = [one for one in objects if one["kind"] == "Service"]
                self.assertEqual({one["spec"]["type"] for one in services}, {"ClusterIP"})
                routes = [one for one in objects if one["kind"] in ("Ingress", "HTTPRoute", "VirtualService")]
                self.assertNotIn("evenkeel-internal", json.dumps(routes))
                self.assertNotIn("9000", json.dumps(routes))

    def test_with_the_open_set_only_the_gateway_decides_where_ws_leads(self):
        for rendering in [kit.overlay("openset"), kit.chart("open set")]:
            objects = kit.load_all(rendering)
            self.assertNotIn("selector", kit.find(objects, "Service", "ws")["spec"])
            self.assertIn("selector", kit.find(objects, "Service", "ws-all")["spec"])
            pod = kit.find(objects, "Deployment")["spec"]["template"]["spec"]
            self.assertTrue(pod["automountServiceAccountToken"])
            subject = kit.find(objects, "RoleBinding")["subjects"][0]
            self.assertEqual(subject["name"], pod["serviceAccountName"])

    def test_without_it_pods_have_no_token(self):
        pod = kit.find(kit.load_all(kit.overlay("base")), "Deployment")["spec"]["template"]["spec"]
        self.assertFalse(pod["automountServiceAccountToken"])

    def config_map(self, objects):
        maps = [one for one in objects if one["kind"] == "ConfigMap" and "gateway.toml" in one["data"]]
        self.assertEqual(len(maps), 1)
        return maps[0]["data"]

    def check_config(self, text, env):
        """Runs `gateway check-config` with the secrets in a directory of this check."""
        for secret in ["api-keys", "token-hmac-secret", "nats-password"]:
            self.write(f"secrets/{secret}", f"a-{secret}-of-thirty-two-bytes-and-more\n")
        self.write("secrets/redis-url", "rediss://evenkeel:password@redis.example:6379/0\n")
        here = str(self.directory / "secrets")
        config = self.write("gateway.toml", text.replace(kit.SECRETS, here))
        env = {name: value.replace(kit.SECRETS, here) for name, value in env.items()}
        return kit.succeed(kit.GATEWAY, "check-config", "--config", config, env=kit.plain_environment(**env))


if __name__ == "__main__":
    unittest.main()
