"""What every scenario needs: events with a deadline, checks, tokens, and a proxy that can fail on purpose."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import time
import traceback
from urllib.parse import urlsplit, urlunsplit

import cent
from centrifuge import Client, ClientEventHandler, SubscriptionEventHandler

# No event of a healthy gateway on a busy two-core machine takes longer (seconds).
DEADLINE = 20.0

# Seconds that a token is valid which is to be refreshed: it must not be over before it has arrived.
SHORT_TTL = 3


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def equal(actual, expected, what):
    check(actual == expected, f"{what}: got {actual!r}, expected {expected!r}")


async def within(awaitable, what, limit=DEADLINE):
    try:
        return await asyncio.wait_for(awaitable, limit)
    except asyncio.TimeoutError:
        raise AssertionError(f"nothing within {limit} s: {what}") from None


async def rejected(awaitable, error_type, what):
    """The awaitable must raise `error_type`; the error is returned."""
    try:
        await within(awaitable, what)
    except error_type as error:
        return error
    raise AssertionError(f"{what}: succeeded, expected {error_type.__name__}")


class Settings:
    def __init__(self):
        self.ws = os.environ["EVENKEEL_TEST_WS"]
        self.api = os.environ["EVENKEEL_TEST_API"]
        self.key = os.environ["EVENKEEL_API_KEY"]
        self.secret = os.environ["EVENKEEL_TOKEN_HMAC_SECRET"]
        self.nodes = int(os.environ["EVENKEEL_TEST_NODES"])


class Events:
    """Every event of an SDK object, kept until a scenario takes it."""

    def __init__(self):
        self._seen = []
        self._waiting = []

    def push(self, name, ctx):
        for waiter in self._waiting:
            wanted, match, future = waiter
            if wanted == name and match(ctx) and not future.done():
                self._waiting.remove(waiter)
                future.set_result(ctx)
                return
        self._seen.append((name, ctx))

    async def take(self, name, match=lambda ctx: True):
        """The context of the first event of this name (and match) that was not taken yet."""
        for event in self._seen:
            if event[0] == name and match(event[1]):
                self._seen.remove(event)
                return event[1]
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((name, match, future))
        return await within(future, f"event {name!r}")

    def none(self, *names):
        """Fails when an event of one of these names came and was not taken."""
        for name, ctx in self._seen:
            check(name not in names, f"unexpected event {name}: {ctx}")


def _record(events, name):
    async def handler(_self, ctx):
        events.push(name, ctx)

    return handler


_NAMES = (
    "connecting connected disconnected error subscribing subscribed unsubscribed publication join leave".split()
)


def _handlers(base, events):
    methods = {f"on_{name}": _record(events, name) for name in _NAMES if hasattr(base, f"on_{name}")}
    return type("Recorder", (base,), methods)()


class Proxy:
    """Forwards bytes to the gateway until told to cut, refuse or stall."""

    def __init__(self, target):
        self._target = target
        self._cut = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers = set()
        self._tasks = set()
        self._server = None
        self.url = ""

    async def open(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        parts = urlsplit(self._target)
        self.url = urlunsplit(parts._replace(netloc=f"127.0.0.1:{port}"))
        return self

    async def _accept(self, near_reader, near_writer):
        if self._cut:
            near_writer.transport.abort()
            return
        parts = urlsplit(self._target)
        far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port)
        self._writers |= {near_writer, far_writer}
        for pump in (self._pump(near_reader, far_writer, False), self._pump(far_reader, near_writer, True)):
            task = asyncio.ensure_future(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader, writer, may_stall):
        try:
            while True:
                if may_stall:
                    await self._flowing.wait()
                data = await reader.read(65536)
                if not data:
                    break
                if may_stall:
                    await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def cut(self):
        """Ends every connection without a close frame and refuses new ones."""
        self._cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def restore(self):
        self._cut = False

    def stall(self):
        """Stops reading from the gateway, as a client whose network has stopped does."""
        self._flowing.clear()

    def flow(self):
        self._flowing.set()

    async def close(self):
        self._server.close()
        self.flow()
        self.cut()
        for task in list(self._tasks):
            task.cancel()


class World:
    """What one scenario works with: clients that are closed at its end, names of its own, the server API."""

    def __init__(self, settings, binary, label):
        self.settings = settings
        self.binary = binary
        self.label = label
        self.api = cent.AsyncClient(settings.api, settings.key)
        self._clients = []
        self._proxies = []

    def user(self, name="ann"):
        return f"{name}-{self.label}"

    def channel(self, namespace, name="main"):
        return f"{namespace}:{name}-{self.label}"

    def encode(self, value):
        """Payloads are bytes for the Protobuf client and values for the JSON one."""
        return json.dumps(value).encode() if self.binary else value

    def decode(self, data):
        return json.loads(data) if self.binary else data

    def token(self, ttl=600, **claims):
        """A JWT with these claims that expires in `ttl` seconds."""

        def part(data):
            return base64.urlsafe_b64encode(data).rstrip(b"=")

        claims = {"exp": int(time.time()) + ttl, **claims}
        body = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(claims).encode())
        signature = hmac.new(self.settings.secret.encode(), body, hashlib.sha256).digest()
        return (body + b"." + part(signature)).decode()

    def client(self, user=None, url=None, token=None, get_token=None, **claims):
        events = Events()
        client = Client(
            url or self.settings.ws,
            events=_handlers(ClientEventHandler, events),
            token=token or self.token(sub=user or self.user(), **claims),
            get_token=get_token,
            use_protobuf=self.binary,
            min_reconnect_delay=0.02,
            max_reconnect_delay=0.2,
            proxy=None,
        )
        self._clients.append(client)
        return client, events

    async def connected(self, **options):
        """A connected client, its events and its id."""
        client, events = self.client(**options)
        await client.connect()
        hello = await events.take("connected")
        return client, events, hello.client

    def subscription(self, client, channel, **options):
        events = Events()
        sub = client.new_subscription(
            channel,
            events=_handlers(SubscriptionEventHandler, events),
            min_resubscribe_delay=0.02,
            max_resubscribe_delay=0.2,
            **options,
        )
        return sub, events

    async def subscribed(self, client, channel, **options):
        """A subscription that is made, its events and the context of `subscribed`."""
        sub, events = self.subscription(client, channel, **options)
        await sub.subscribe()
        return sub, events, await events.take("subscribed")

    async def proxy(self):
        proxy = await Proxy(self.settings.ws).open()
        self._proxies.append(proxy)
        return proxy

    async def publish(self, channel, data, **more):
        return await self.api.publish(cent.PublishRequest(channel=channel, data=data, **more))

    async def close(self):
        for client in self._clients:
            await client.disconnect()
        for proxy in self._proxies:
            await proxy.close()
        await self.api.close()


async def run_all(scenarios, settings, binary):
    """Runs the scenarios in order, reports each as a TAP line and returns how many failed."""
    print("TAP version 13")
    print(f"1..{len(scenarios)}", flush=True)
    failed = 0 if scenarios else 1
    for index, scenario in enumerate(scenarios, 1):
        name = scenario.__doc__
        # Another run may have been on the same Redis.
        world = World(settings, binary, f"py{'pb' if binary else 'json'}-{os.getpid()}-{index}")
        try:
            await within(scenario(world), name, 4 * DEADLINE)
            print(f"ok {index} - {name}", flush=True)
        except Exception:
            failed += 1
            print(f"not ok {index} - {name}")
            print("# " + traceback.format_exc().rstrip().replace("\n", "\n# "), flush=True)
        finally:
            await world.close()
    return failed
