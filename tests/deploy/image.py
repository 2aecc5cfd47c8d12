"""The image without a container engine: what deploy/Dockerfile says, what its builder is sent, and programs run as the image
runs them.

`python3 image.py DIRECTORY` carries out the steps of the Dockerfile in an empty directory, which takes minutes, starts what
they make, and says how much each image adds to its base."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"

# What the image's base has for programs that are linked to it: the C library and what comes with the compiler.
LIBRARIES = {
    "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1", "libstdc++.so.6", "libssl.so.3",
    "libcrypto.so.3"}

# How long a gateway may take to be healthy, and to end (seconds).
DEADLINE = 20.0

# Makes a directory the read-only root of a program without root's rights, with a network of its own, as a container engine
# does: root, user, then the program and its arguments.
CONTAIN = """
ip link set lo up
mount --bind "$1" "$1"
mount --rbind /proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -o remount,bind,ro "$1"
root=$1 user=$2
shift 2
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" "$@"
"""


class Stage:
    """One image of a Dockerfile."""

    def __init__(self, base, name):
        self.base, self.name = base, name
        # `(instruction, options, the rest of the line)`
        self.steps = []

    def all_of(self, instruction):
        return [(options, rest) for word, options, rest in self.steps if word == instruction]

    def one_of(self, instruction):
        """The only one, without its options."""
        (_, rest), = self.all_of(instruction)
        return rest

    def command_of(self, instruction):
        """The words of the only one, which is in the form without a shell."""
        return json.loads(self.one_of(instruction).removeprefix("CMD").strip())

    def copies(self):
        """`(the stage it comes from or nothing, sources, destination)`"""
        for options, rest in self.all_of("COPY"):
            *sources, destination = shlex.split(rest)
            yield dict(option.split("=", 1) for option in options).get("--from"), sources, destination


def stages(text):
    """The stages of a Dockerfile by their names."""
    lines = [line for line in text.splitlines() if not line.strip().startswith("#")]
    found = {}
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base, name)
            continue
        options = re.match(r"(?:--\S+\s+)*", rest)[0]
        stage.steps.append((instruction, options.split(), rest[len(options):].strip()))
    return found


def expression(pattern):
    """What a line of .dockerignore stands for, as a regular expression for whole paths."""
    if pattern.startswith("!"):
        raise ValueError(f"exceptions are not understood: {pattern}")
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


def context(root=ROOT):
    """The files that a builder is sent, as paths below the root."""
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    ignored = [expression(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    for directory, names, files in os.walk(root):
        here = pathlib.Path(directory).relative_to(root)

        def is_sent(name, here=here):
            return not any(one.fullmatch((here / name).as_posix()) for one in ignored)

        names[:] = filter(is_sent, names)
        yield from (here / name for name in filter(is_sent, files))


def copy_context(to):
    """Copies what a builder is sent, and nothing else."""
    for path in context():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, to / path)


def make_root(directory, program, destination):
    """A root like the image's: the program where the image has it, and of the base what it is linked to. Fails when it is
    linked to more than the base has."""
    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    libraries = [pathlib.Path(path) for path in re.findall(r"(/\S+) \(0x", linked)]
    unknown = {path.name for path in libraries if not path.name.startswith("ld-linux-")} - LIBRARIES
    if unknown or "not found" in linked:
        raise AssertionError(f"{program} needs what the base does not have:\n{linked}")
    for source, target in [(path, path) for path in libraries] + [(program, destination)]:
        place = directory / str(target).lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    for name in ["proc", "dev"]:
        (directory / name).mkdir()


def contain(root, user, command):
    """The command that runs a command with this root, as a user without rights. Its process is that of the program."""
    return ["unshare", "--mount", "--net", "sh", "-euc", CONTAIN, "sh", root, user, *command]


def inside(process, user, command):
    """The command that runs a command beside a contained process, as health checks are."""
    user, group = user.split(":")
    return [
        "nsenter", "--target", process, "--mount", "--net", "--root", "--setuid", user, "--setgid", group, *command]


def in_text(command):
    return [str(word) for word in command]


class Contained:
    """A program that runs as the image runs it, until the end of a `with`."""

    def __init__(self, root, stage, arguments=(), environment=None):
        self.user, self.stage = stage.one_of("USER"), stage
        command = contain(root, self.user, stage.command_of("ENTRYPOINT") + list(arguments))
        # A container has none of the surroundings' variables.
        surroundings = {"PATH": os.environ["PATH"]} | (environment or {})
        self.child = subprocess.Popen(in_text(command), env=surroundings, stdout=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()

    def is_healthy(self):
        """What the health check of the image says."""
        command = inside(self.child.pid, self.user, self.stage.command_of("HEALTHCHECK"))
        return subprocess.run(in_text(command), capture_output=True, check=False).returncode == 0

    def wait_until_healthy(self):
        end = time.monotonic() + DEADLINE
        while not self.is_healthy():
            if self.child.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"it is not healthy: exit code {self.child.poll()}")
            time.sleep(0.05)

    def stop(self):
        """Ends it as an engine does; its exit code."""
        self.child.terminate()
        return self.child.wait(DEADLINE)

    def status(self, name):
        """A line of what the kernel says of the process."""
        text = pathlib.Path(f"/proc/{self.child.pid}/status").read_text(encoding="utf-8")
        return re.search(rf"^{name}:\s*(.*)$", text, re.MULTILINE)[1]

    def root_options(self):
        """How its root is mounted."""
        mounts = pathlib.Path(f"/proc/{self.child.pid}/mountinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split()[5].split(",") for line in mounts if line.split()[4] == "/")


# Beside the image's own settings: nobody waits for clients that are not there.
QUICKLY = {"EVENKEEL_DRAIN__GRACE_ACCEPT": "0s", "EVENKEEL_DRAIN__WINDOW": "0s"}


def build(directory):
    """Carries out the steps of the first stage; where what they make is."""
    source, out = directory / "source", directory / "out"
    copy_context(source)
    stage = next(iter(stages(DOCKERFILE.read_text(encoding="utf-8")).values()))
    ours = ("CARGO_TARGET_", "CARGO_BUILD_", "CARGO_PROFILE_", "RUSTFLAGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    for _, command in stage.all_of("RUN"):
        # Where the image has its own top-level directory, one of ours stands for it.
        command = re.sub(r"(?<=\s)/out\b", shlex.quote(str(out)), command)
        subprocess.run(["sh", "-euc", command], cwd=source, env=environment, check=True)
    if any((source / "target").rglob("CMakeCache.txt")):
        raise AssertionError("something was built with CMake, which the builder's image does not have")
    return out


def main(directory):
    directory = pathlib.Path(directory).resolve()
    directory.mkdir(parents=True)
    sent = sum((ROOT / path).stat().st_size for path in context())
    print(f"context: {sent / 1e6:.1f} MB")
    out = build(directory)
    for name, stage in list(stages(DOCKERFILE.read_text(encoding="utf-8")).items())[1:]:
        (_, [source], destination), = stage.copies()
        program = out / pathlib.Path(source).name
        root = directory / f"root-{name}"
        make_root(root, program, destination)
        if stage.all_of("HEALTHCHECK"):
            with Contained(root, stage, ["--dev"], QUICKLY) as contained:
                contained.wait_until_healthy()
                code = contained.stop()
            said = f"healthy as user {stage.one_of('USER')} on a read-only root, ended with exit code {code}"
        else:
            with Contained(root, stage, ["--version"]) as contained:
                code = contained.child.wait(DEADLINE)
            said = f"ended with exit code {code}"
        if code != 0:
            raise AssertionError(f"{name}: {said}")
        print(f"image {name}: {program.stat().st_size / 1e6:.1f} MB on top of {stage.base}; {said}")


if __name__ == "__main__":
    main(sys.argv[1])
