"""What the checks of deploy/ share: where things are, how programs are run, and the objects that its manifests render."""

import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
HERE = ROOT / "tests" / "deploy"
TOOLS = ROOT / "tests" / ".tools"
GATEWAY = pathlib.Path(os.environ.get("EVENKEEL_TEST_GATEWAY", ROOT / "target" / "ci" / "gateway"))
LOADGEN = GATEWAY.with_name(GATEWAY.name.replace("gateway", "loadgen"))
HELM = TOOLS / "bin" / "helm"
# The one before, where there is a package of it.
HELM3 = TOOLS / "bin" / "helm3"
# kubectl has kustomize in it; where there is none, kustomize was built.
KUBECTL = TOOLS / "bin" / "kubectl"
KUSTOMIZE = [KUBECTL, "kustomize"] if KUBECTL.exists() else [TOOLS / "bin" / "kustomize", "build"]
NODE = TOOLS / "bin" / "node"

# The versions of Kubernetes that manifests must be valid in: the oldest that they are for, one from between, and the newest
# with a published schema.
KUBERNETES = ["1.27.0", "1.30.0", "1.37.0"]

# The longest that any single expected event may take (seconds).
DEADLINE = 20.0

# Where secrets are mounted in a pod.
SECRETS = "/run/secrets/evenkeel"

# Every component by itself, with what it needs beside the base.
COMPONENTS = {
    "redis": ["redis"],
    "nats": ["nats"],
    "keda": ["keda"],
    "keda-metrics-api": ["keda-metrics-api"],
    "hpa": ["hpa"],
    "openset": ["redis", "openset"],
    "monitoring": ["monitoring"],
    "ingress-haproxy": ["ingress-haproxy"],
    "ingress-nginx": ["ingress-nginx"],
    "ingress-nginx-sticky": ["ingress-nginx", "ingress-nginx-sticky"],
    "gateway-api": ["gateway-api"],
    "istio": ["istio"],
}


def run(*command, env=None, **options):
    """Runs a program to its end and returns it with its output, whether or not it succeeded."""
    command = [str(part) for part in command]
    options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
    return subprocess.run(
        command, env=env, timeout=120, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **options)


def succeed(*command, **options):
    """Runs a program that must succeed; returns what it printed."""
    done = run(*command, **options)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def plain_environment(**more):
    """The surroundings without any variable that a gateway reads, and these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENKEEL_") and name != "RUST_LOG"}
    return kept | more


class Check(unittest.TestCase):
    """A group of checks with a directory of its own."""

    maxDiff = None

    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="evenkeel-deploy-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def write(self, name, text):
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


def load_all(text):
    """All objects of a stream of YAML documents."""
    return [document for document in yaml.safe_load_all(text) if document]


@functools.cache
def overlay(name):
    """The text that kustomize renders: `base`, `examples/NAME`, or a component by its name."""
    if name == "base" or name.startswith("examples/"):
        return succeed(*KUSTOMIZE, DEPLOY / "kustomize" / name)
    with tempfile.TemporaryDirectory(prefix="evenkeel-kustomize-") as directory:
        copy = pathlib.Path(directory) / "kustomize"
        shutil.copytree(DEPLOY / "kustomize", copy)
        own = copy / "of-a-test"
        own.mkdir()
        components = [f"../components/{component}" for component in COMPONENTS[name]]
        (own / "kustomization.yaml").write_text(yaml.safe_dump({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": ["../base"], "components": components}), encoding="utf-8")
        return succeed(*KUSTOMIZE, own)


def overlays():
    """The names of everything that kustomize can render."""
    examples = sorted(f"examples/{path.name}" for path in (DEPLOY / "kustomize" / "examples").iterdir())
    return ["base", *examples, *COMPONENTS]


# Values of the chart, by a name for each: every branch of its templates is in one of them.
CHART_VALUES = {
    "defaults": [],
    "redis and KEDA": ["backplane.kind=redis", "autoscaling.kind=keda", "monitoring.enabled=true"],
    "open set": ["backplane.kind=redis", "replicas=3", "openSet.enabled=true"],
    "NATS and HPA": ["backplane.kind=nats", "autoscaling.kind=hpa", "log.level=debug", "networkPolicy.enabled=false"],
    "places": ["backplane.kind=redis", "replicas=3", "nodeSelector.a=b", "tolerations[0].operator=Exists",
               "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution=null",
               "imagePullSecrets[0].name=registry"],
}


@functools.cache
def chart(name, program=HELM):
    """The text that Helm renders with the values of this name."""
    return helm(*[word for value in CHART_VALUES[name] for word in ("--set", value)], program=program)


def helm(*arguments, program=HELM):
    """The text that Helm renders with these arguments."""
    return succeed(
        program, "template", "evenkeel", DEPLOY / "helm" / "evenkeel", "--namespace", "evenkeel",
        "--kube-version", KUBERNETES[0], *arguments)


def environment(container):
    """The environment of a container; a field of the pod that it is told stands for itself."""
    return {one["name"]: one.get("value") or one["valueFrom"]["fieldRef"]["fieldPath"] for one in container.get("env", [])}


def find(objects, kind, name=None):
    """The one object of this kind, and of this name if there are several."""
    found = [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} objects of kind {kind} named {name}")
    return found[0]


def every_rendering():
    """Everything that kustomize and Helm render: a name and the objects."""
    for name in overlays():
        yield f"kustomize {name}", load_all(overlay(name))
    for name in CHART_VALUES:
        yield f"helm {name}", load_all(chart(name))
