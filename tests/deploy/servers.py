"""Real processes on loopback: gateways, Redis, Prometheus; WebSocket clients, and connections that can be cut."""

import base64
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import kit

API_KEY = "deploy-api-key-0123456789"
SECRET = "deploy-hmac-secret-0123456789abcdef"
SETTINGS = {
    "EVENKEEL_API_KEY": API_KEY,
    "EVENKEEL_TOKEN_HMAC_SECRET": SECRET,
    # Nobody routes new clients here, and nobody answers pings.
    "EVENKEEL_DRAIN__GRACE_ACCEPT": "0s",
    "EVENKEEL_DRAIN__WINDOW": "0s",
    "EVENKEEL_CLIENT__PING_INTERVAL": "10m",
    "EVENKEEL_CHANNEL__ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
    "EVENKEEL_CHANNEL__HISTORY_SIZE": "10",
    "EVENKEEL_CHANNEL__HISTORY_TTL": "300s",
    "EVENKEEL_CHANNEL__FORCE_RECOVERY": "true",
}

# How often is looked, where nothing tells when something has come true (seconds).
LOOK_EVERY = 0.05


def until(what, holds, deadline=kit.DEADLINE):
    """Looks until `holds` returns something true, and returns that."""
    end = time.monotonic() + deadline
    while True:
        value = holds()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline} s: {what}")
        time.sleep(LOOK_EVERY)


def free_port():
    """A loopback port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def fetch(url, data=None, headers=None, timeout=5):
    """The status and body of an answer; status 0 when there is none."""
    body = None if data is None else json.dumps(data).encode()
    asked = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"} | (headers or {}))
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, urllib.error.URLError):
        return 0, ""


class Process:
    """A process that ends with the check at the latest."""

    def __init__(self, check, command, env=None):
        self.log = pathlib.Path(tempfile.mkstemp(dir=check.directory, suffix=".log")[1])
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [str(part) for part in command], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        check.addCleanup(self.kill)

    def signal(self, number):
        if self.child.poll() is None:
            self.child.send_signal(number)

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def resume(self):
        self.signal(signal.SIGCONT)

    def terminate(self):
        self.signal(signal.SIGTERM)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.child.wait()

    def said(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, what, holds):
        """Waits for its being ready; tells what it said when it ends instead."""

        def ready():
            if self.child.poll() is not None:
                raise AssertionError(f"it ended, expected {what}:\n{self.said()}")
            return holds()

        return until(what, ready)


class Redis(Process):
    def __init__(self, check):
        self.port = free_port()
        super().__init__(check, [
            "redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--dir", check.directory])
        self.wait_for("redis to be ready", lambda: "Ready to accept connections" in self.said())


class Gateway(Process):
    """A node; `redis_port` is where it finds Redis, which may be a front."""

    def __init__(self, check, redis_port=None, **settings):
        env = kit.plain_environment(**(SETTINGS | settings))
        if redis_port:
            env |= {"EVENKEEL_BACKPLANE__KIND": "redis", "EVENKEEL_REDIS__ADDRESSES": f"127.0.0.1:{redis_port}"}
        super().__init__(check, [kit.GATEWAY, "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"], env=env)
        self.public = self.address("public")
        self.internal = self.address("internal")
        self.wait_for("the node to be ready", lambda: fetch(f"http://{self.internal}/health/ready")[0] == 200)

    def address(self, which):
        def printed():
            for line in self.said().splitlines():
                if line.startswith(f"listening {which}="):
                    return urllib.parse.urlsplit(line.partition("=")[2]).netloc
            return None

        return self.wait_for(f"the {which} address", printed)

    def metrics(self):
        """What it exports, as text."""
        return fetch(f"http://{self.internal}/metrics")[1]

    def metric(self, name):
        """The value of a metric without labels; `None` when it is absent."""
        for line in self.metrics().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return None

    def api(self, method, **parameters):
        status, body = fetch(f"http://{self.public}/api/{method}", parameters, {"X-API-Key": API_KEY})
        if status != 200 or "error" in json.loads(body):
            raise AssertionError(f"{method}: {status} {body}")
        return json.loads(body)["result"]

    def token(self, user):
        return kit.succeed(kit.GATEWAY, "token", "--user", user, env=kit.plain_environment(**SETTINGS)).strip()


class Client:
    """A WebSocket client that has connected with a token. It answers no pings."""

    def __init__(self, check, gateway, token):
        self.socket = socket.create_connection(gateway.public.rsplit(":", 1), timeout=kit.DEADLINE)
        check.addCleanup(self.socket.close)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((
            f"GET /connection/websocket HTTP/1.1\r\nHost: {gateway.public}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
        self.unread = b""
        self.read_until(b"\r\n\r\n", b"101 Switching Protocols")
        self.command(1, connect={"token": token})

    def command(self, number, **command):
        """Sends a command and waits for its reply."""
        text = json.dumps({"id": number, **command}).encode()
        # A masked frame of text; the mask is zero, so the text is unchanged.
        length = bytes([0x80 | len(text)]) if len(text) < 126 else bytes([0xFE]) + len(text).to_bytes(2, "big")
        self.socket.sendall(b"\x81" + length + bytes(4) + text)
        self.read_until(f'"id":{number}'.encode(), b"")

    def read_until(self, end, wanted):
        """Reads until these bytes have come; what came up to them must contain what is wanted."""
        while end not in self.unread:
            read = self.socket.recv(4096)
            if not read:
                raise AssertionError(f"the connection ended: {self.unread!r}")
            self.unread += read
        head, _, self.unread = self.unread.partition(end)
        if wanted not in head:
            raise AssertionError(f"unexpected: {head!r}")

    def close(self):
        self.socket.close()


class Front:
    """Leads to another port of loopback. Cut, it ends what it carries and refuses more."""

    def __init__(self, check, target):
        self.target = int(target)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.is_cut = False
        self.pairs = []
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()
        check.addCleanup(self.end)

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                if self.is_cut:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                self.pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self.carry, args=(source, sink), daemon=True).start()

    def carry(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for one in (source, sink):
            self.shut(one)

    @staticmethod
    def shut(one):
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def cut(self):
        with self.lock:
            self.is_cut = True
            for pair in self.pairs:
                for one in pair:
                    self.shut(one)
            self.pairs.clear()

    def restore(self):
        with self.lock:
            self.is_cut = False

    def end(self):
        self.cut()
        self.listener.close()


class Prometheus(Process):
    """Scrapes these targets, `{address: namespace}`, once a second."""

    def __init__(self, check, targets):
        self.port = free_port()
        jobs = [{"targets": [address], "labels": {"namespace": namespace, "pod": f"pod-{index}"}}
                for index, (address, namespace) in enumerate(targets.items())]
        config = check.write("prometheus.yml", json.dumps({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [{"job_name": "evenkeel", "static_configs": jobs}]}))
        super().__init__(check, [
            "prometheus", f"--config.file={config}", f"--storage.tsdb.path={check.directory / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"])
        self.wait_for("prometheus to be ready", lambda: fetch(f"{self.url()}/-/ready")[0] == 200)

    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def query(self, expression):
        """The samples of an instant query, `[(labels, value)]`; `None` when it does not answer."""
        status, body = fetch(f"{self.url()}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        if status != 200:
            return None
        return [(one["metric"], float(one["value"][1])) for one in json.loads(body)["data"]["result"]]

    def healthy_targets(self):
        samples = self.query("up == 1")
        return None if samples is None else len(samples)
