"""The files for machines without Kubernetes: each is checked by the program that reads it, or by a linter for it."""

import json
import re
import unittest

import compose_spec
import yaml

import kit


def read(path):
    return (kit.DEPLOY / path).read_text(encoding="utf-8")


def without_comments(text):
    return [line.split(" #")[0].rstrip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


class Proxies(kit.Check):
    def test_haproxy_takes_its_configuration(self):
        kit.succeed("haproxy", "-c", "-f", kit.DEPLOY / "haproxy" / "haproxy.cfg")

    def test_haproxy_takes_the_configuration_of_compose(self):
        # Names of a network that is not here are warned of, and nothing else is wrong.
        done = kit.run("haproxy", "-c", "-f", kit.DEPLOY / "compose" / "haproxy.cfg")
        self.assertEqual(done.returncode, 0, done.stderr)
        warnings = [line for line in done.stderr.splitlines() if "[WARNING]" in line]
        self.assertEqual([line for line in warnings if "could not resolve address" not in line], [])

    def test_haproxy_finds_a_mistake(self):
        broken = self.write("haproxy.cfg", read("haproxy/haproxy.cfg").replace("balance leastconn", "balance leastcon"))
        self.assertNotEqual(kit.run("haproxy", "-c", "-f", broken).returncode, 0)

    def test_both_configurations_of_haproxy_differ_in_nothing_but_names(self):
        ours, compose = (without_comments(read(path)) for path in ["haproxy/haproxy.cfg", "compose/haproxy.cfg"])
        different = {line.strip() for line in set(ours) ^ set(compose)}
        allowed = [
            r"stats socket \S+ mode 600 level admin", r"default-server check .*", r"server gw\d \S+:8000", r"resolvers docker",
            r"nameserver dns 127\.0\.0\.11:53"]
        self.assertEqual([line for line in different if not any(re.fullmatch(one, line) for one in allowed)], [])

    def test_nginx_takes_its_configuration(self):
        text = read("nginx/nginx.conf").replace("pid /run/nginx.pid;", f"pid {self.directory}/nginx.pid;")
        config = self.write("nginx.conf", text)
        done = kit.run("nginx", "-t", "-c", config)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("[warn]", done.stderr)

    def test_nginx_finds_a_mistake(self):
        broken = self.write("nginx.conf", read("nginx/nginx.conf").replace("least_conn;", "least_con;"))
        self.assertNotEqual(kit.run("nginx", "-t", "-c", broken).returncode, 0)


class Systemd(kit.Check):
    def verify(self, text):
        """What systemd says of a unit whose program is the one that was built."""
        unit = self.write("evenkeel.service", text.replace("/usr/local/bin/gateway", str(kit.GATEWAY)))
        return kit.run("systemd-analyze", "verify", unit)

    def test_systemd_takes_the_unit(self):
        done = self.verify(read("systemd/evenkeel.service"))
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_systemd_finds_a_mistake(self):
        done = self.verify(read("systemd/evenkeel.service").replace("KillMode=mixed", "KillMode=slowly"))
        self.assertIn("kill mode", done.stderr)

    def test_it_waits_longer_than_a_drain(self):
        # A second for the accept grace and ten for those that do not answer are the gateway's defaults; the window is set.
        wait = int(re.search(r"^TimeoutStopSec=(\d+)$", read("systemd/evenkeel.service"), re.MULTILINE)[1])
        self.assertGreaterEqual(wait, 5 + 240 + 10)


class Containers(kit.Check):
    def test_the_dockerfile_passes_its_linter(self):
        done = kit.run(kit.TOOLS / "venv" / "bin" / "hadolint", "--no-color", kit.DEPLOY / "Dockerfile")
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def test_the_linter_finds_a_mistake(self):
        broken = self.write("Dockerfile", read("Dockerfile").replace("WORKDIR /source", "WORKDIR source"))
        self.assertIn("DL3000", kit.run(kit.TOOLS / "venv" / "bin" / "hadolint", broken).stdout)

    def compose(self):
        return yaml.safe_load(read("compose/compose.yaml"))

    def check_compose(self, document):
        """Fails on a field that the specification does not have, and on a name of a network or volume that is nowhere."""
        compose_spec.PyCompose.from_json(json.dumps(document)).validate()

    def test_the_compose_file_is_valid(self):
        self.check_compose(self.compose())

    def test_mistakes_in_it_are_found(self):
        wrong = self.compose()
        wrong["services"]["gw1"]["stop_grace"] = "60s"
        with self.assertRaisesRegex(ValueError, "stop_grace"):
            self.check_compose(wrong)
        wrong = self.compose()
        wrong["services"]["redis"]["networks"] = ["outside"]
        with self.assertRaisesRegex(ValueError, "outside"):
            self.check_compose(wrong)

    def test_what_the_compose_file_mounts_is_there(self):
        for name, service in self.compose()["services"].items():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    self.assertTrue((kit.DEPLOY / "compose" / source).is_file(), f"{name}: {source}")

    def test_the_targets_that_are_built_are_stages_of_the_dockerfile(self):
        stages = re.findall(r"^FROM \S+ AS (\w+)$", read("Dockerfile"), re.MULTILINE)
        for service in self.compose()["services"].values():
            if "build" in service:
                self.assertIn(service["build"]["target"], stages)
        self.assertEqual(stages[-1], "gateway", "what is built when no target is named")


if __name__ == "__main__":
    unittest.main()
