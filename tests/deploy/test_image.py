"""The image, as far as no container engine is needed: its builder is sent what it needs and builds what is copied, and the
program runs as the image runs it: by its entry point, without rights, on a read-only root, and its health check sees that."""

import functools
import json
import os
import pathlib
import re
import shlex
import signal
import tomllib
import unittest

import image
import kit


def stages():
    return image.stages(image.DOCKERFILE.read_text(encoding="utf-8"))


def manifest():
    return tomllib.loads((kit.ROOT / "Cargo.toml").read_text(encoding="utf-8"))


def metadata(root):
    return json.loads(kit.succeed("cargo", "metadata", "--locked", "--offline", "--format-version", "1", cwd=root))


def targets(found, root):
    """What cargo builds of the workspace: `{(package, kind, name, source below the root)}`."""
    members = [one for one in found["packages"] if one["id"] in found["workspace_members"]]
    return {
        (package["name"], *target["kind"], target["name"], os.path.relpath(target["src_path"], os.path.realpath(root)))
        for package in members for target in package["targets"]}


def programs_of(command, found):
    """The programs that a `cargo build` of these words makes."""
    after = {word: command[index + 1] for index, word in enumerate(command[:-1]) if word == "--bin"}
    if after:
        raise AssertionError("--bin finds the programs of the default members only: name packages with -p")
    named = {command[index + 1] for index, word in enumerate(command[:-1]) if word == "-p"}
    packages = [one for one in found["packages"] if one["id"] in found["workspace_members"] and one["name"] in named]
    return {target["name"] for package in packages for target in package["targets"] if "bin" in target["kind"]}


class Dockerfile(kit.Check):
    def test_lines_are_understood(self):
        text = '# c\nFROM a:1 AS x\nCOPY b \\\n  # c\n  c /d/\nFROM y AS z\nCOPY --from=x /e /f\nHEALTHCHECK --a=1 \\\n  CMD ["g", "h"]\n'
        found = image.stages(text)
        self.assertEqual([(one.base, one.name) for one in found.values()], [("a:1", "x"), ("y", "z")])
        self.assertEqual(list(found["x"].copies()), [(None, ["b", "c"], "/d/")])
        self.assertEqual(list(found["z"].copies()), [("x", ["/e"], "/f")])
        self.assertEqual(found["z"].command_of("HEALTHCHECK"), ["g", "h"])

    def test_what_is_not_sent_is_understood(self):
        def is_ignored(pattern, path):
            return bool(image.expression(pattern).fullmatch(path))

        for pattern, path, expected in [
                ("target", "target", True), ("target", "a/target", False), ("/a/b/", "a/b", True),
                ("**/c", "c", True), ("**/c", "a/b/c", True), ("**/c", "a/bc", False), ("*.x", "a.x", True),
                ("*.x", "a/b.x", False), ("a?", "ab", True), ("a/**", "a/b/c", True)]:
            self.assertEqual(is_ignored(pattern, path), expected, (pattern, path))
        with self.assertRaises(ValueError):
            image.expression("!a")

    def test_the_builder_is_of_the_oldest_compiler_that_is_supported(self):
        build = next(iter(stages().values()))
        self.assertEqual(build.base.split(":")[1].split("-")[0], manifest()["workspace"]["package"]["rust-version"])

    def test_each_program_is_built_copied_and_run(self):
        found, build = metadata(kit.ROOT), stages()["build"]
        (_, run), = build.all_of("RUN")
        steps = [shlex.split(step) for step in run.split("&&")]
        cargo = next(step for step in steps if step[:2] == ["cargo", "build"])
        install = next(step for step in steps if step[0] == "install")
        installed = {pathlib.Path(word).name for word in install if word.startswith("target/release/")}
        self.assertLessEqual(installed, programs_of(cargo, found))
        self.assertIn("--locked", cargo)
        directory = install[install.index("-t") + 1]
        for name, stage in stages().items():
            if stage is build or name == "build":
                continue
            (origin, [source], destination), = stage.copies()
            self.assertEqual((origin, source, name), ("build", f"{directory}/{name}", name))
            self.assertIn(name, installed)
            self.assertEqual(stage.command_of("ENTRYPOINT"), [destination])
            self.assertRegex(stage.one_of("USER"), r"^[1-9]\d*:[1-9]\d*$")
        self.assertEqual(stages()["gateway"].command_of("HEALTHCHECK")[0], "/usr/local/bin/gateway")

    def test_programs_of_other_packages_are_not_found_by_their_names(self):
        found = metadata(kit.ROOT)
        with self.assertRaisesRegex(AssertionError, "default members"):
            programs_of(["cargo", "build", "--bin", "loadgen"], found)
        self.assertEqual(programs_of(["cargo", "build", "-p", "gateway"], found), {"gateway"})


class Context(kit.Check):
    @functools.cached_property
    def sent(self):
        return {path.as_posix() for path in image.context()}

    def test_it_is_small(self):
        size = sum((kit.ROOT / path).stat().st_size for path in self.sent)
        self.assertLess(size, 20e6, "something large is sent to the builder: see .dockerignore")
        self.assertFalse([path for path in self.sent if path.startswith((".git/", "target/", "tests/.tools/"))])

    def test_what_is_copied_from_it_is_sent(self):
        for stage in stages().values():
            for origin, sources, _ in stage.copies():
                for source in sources if origin is None else []:
                    wanted = source.removeprefix("./").rstrip("/")
                    is_there = wanted == "." or any(one == wanted or one.startswith(f"{wanted}/") for one in self.sent)
                    self.assertTrue(is_there, f"{source} is not sent")

    def test_cargo_finds_in_it_all_that_it_finds_here(self):
        image.copy_context(self.directory)
        there, here = (targets(metadata(root), root) for root in [self.directory, kit.ROOT])
        self.assertEqual(there, here)

    def test_what_is_compiled_in_is_sent(self):
        """Cargo knows nothing of files that are taken up as text or bytes."""
        taken = []
        for path in self.sent:
            if not path.endswith(".rs"):
                continue
            source = (kit.ROOT / path).read_text(encoding="utf-8")
            for name in re.findall(r'include(?:_str|_bytes)?!\(\s*"([^"]+)"', source):
                taken.append(os.path.normpath(pathlib.Path(path).parent / name))
        self.assertTrue(taken)
        self.assertEqual({one for one in taken if (kit.ROOT / one).exists()} - self.sent, set())


class Run(kit.Check):
    """As the pods of deploy/kustomize/base run it."""

    def setUp(self):
        super().setUp()
        self.assertEqual(os.geteuid(), 0, "roots and networks of their own are made by root")
        self.stage = stages()["gateway"]
        (_, _, destination), = self.stage.copies()
        self.root = self.directory / "root"
        self.root.mkdir()
        image.make_root(self.root, kit.GATEWAY, destination)

    def put(self, path, text):
        place = self.root / str(path).lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")

    def test_it_serves_without_rights_on_a_read_only_root(self):
        objects = kit.load_all(kit.overlay("base"))
        container = kit.find(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        self.assertNotIn("command", container, "the entry point of the image is used")
        config = next(one["data"]["gateway.toml"] for one in objects if one["kind"] == "ConfigMap")
        self.put("/etc/evenkeel/gateway.toml", config)
        self.put(f"{kit.SECRETS}/api-keys", "an-api-key-0123456789\n")
        self.put(f"{kit.SECRETS}/token-hmac-secret", "a-secret-0123456789abcdef0123456789\n")
        with image.Contained(self.root, self.stage, container["args"], image.QUICKLY) as contained:
            contained.wait_until_healthy()
            self.assertIn("ro", contained.root_options())
            user = self.stage.one_of("USER").split(":")[0]
            self.assertEqual(set(contained.status("Uid").split()), {user})
            self.assertEqual((int(contained.status("CapEff"), 16), contained.status("NoNewPrivs")), (0, "1"))
            self.assertEqual(self.stage.one_of("STOPSIGNAL"), signal.SIGTERM.name)
            self.assertEqual(contained.stop(), 0)

    def test_the_health_check_finds_that_nobody_is_there(self):
        command = image.contain(self.root, self.stage.one_of("USER"), self.stage.command_of("HEALTHCHECK"))
        self.assertEqual(kit.run(*command).returncode, 1)

    def test_what_the_base_does_not_have_is_found(self):
        with self.assertRaisesRegex(AssertionError, "libpcre|libselinux|libcap|libacl"):
            image.make_root(self.directory / "other", "/bin/ls", "/bin/ls")


if __name__ == "__main__":
    unittest.main()
