"""Scenarios of the client SDK. The docstring of each function is its name in the report."""

import asyncio

import cent
from centrifuge import CentrifugeError
from centrifuge.exceptions import ReplyError
from centrifuge.types import StreamPosition

from kit import SHORT_TTL, check, equal, rejected, within

# The size of the history of namespace `chat` in the configuration of these scenarios.
HISTORY_SIZE = 10


class Calls:
    """Counts the calls of a token callback."""

    def __init__(self, token):
        self._token = token
        self._queue = asyncio.Queue()

    async def __call__(self, *_channel):
        self._queue.put_nowait(None)
        return self._token()

    async def reach(self, count):
        for _ in range(count):
            await within(self._queue.get(), "a call of get_token")


def _lost(ctx):
    return ctx.code != 0


async def connect_with_token(world):
    """connect with a token"""
    client, events, client_id = await world.connected()
    equal(len(client_id), 36, "length of a UUID")
    await client.disconnect()
    equal((await events.take("disconnected")).code, 0, "code")


async def invalid_token(world):
    """an invalid token is final"""
    client, events = world.client(token="not.a.token")
    await client.connect()
    end = await events.take("disconnected")
    equal((end.code, end.reason), (3500, "invalid token"), "disconnected")


async def expired_token(world):
    """an expired token is replaced"""
    calls = Calls(lambda: world.token(sub=world.user()))
    client, events = world.client(ttl=-5, get_token=calls)
    await client.connect()
    await events.take("connected")
    await calls.reach(1)
    events.none("disconnected")


async def token_refresh(world):
    """token refresh keeps the connection"""
    calls = Calls(lambda: world.token(sub=world.user(), ttl=SHORT_TTL))
    client, events = world.client(ttl=SHORT_TTL, get_token=calls)
    await client.connect()
    await events.take("connected")
    # A third call is scheduled only by the reply to the second refresh, so two refreshes have succeeded by then.
    await calls.reach(3)
    await events.take("connecting")
    events.none("error", "connecting", "disconnected")


async def subscribe_with_token(world):
    """subscribe with a token"""
    channel = world.channel("vault")
    client, _events, _id = await world.connected()
    _sub, events, _ctx = await world.subscribed(client, channel, token=world.token(sub=world.user(), channel=channel))
    await world.publish(channel, {"n": 1})
    equal(world.decode((await events.take("publication")).pub.data), {"n": 1}, "data")


async def subscribe_denied(world):
    """subscribe without the token that is needed"""
    client, _events, _id = await world.connected()
    sub, events = world.subscription(client, world.channel("vault"))
    await sub.subscribe()
    end = await events.take("unsubscribed")
    equal((end.code, end.reason), (103, "permission denied"), "unsubscribed")


async def subscription_token_refresh(world):
    """subscription token refresh"""
    channel = world.channel("vault")
    calls = Calls(lambda: world.token(sub=world.user(), channel=channel, ttl=SHORT_TTL))
    client, _events, _id = await world.connected()
    _sub, events, _ctx = await world.subscribed(client, channel, get_token=calls)
    await calls.reach(3)
    # Who is refused a refresh subscribes anew, with a token that is asked for, too.
    await events.take("subscribing")
    events.none("error", "subscribing", "unsubscribed")


async def publish(world):
    """publish reaches every subscriber, the publisher too"""
    channel = world.channel("chat")
    ann, _events, ann_id = await world.connected()
    bob, _events, _id = await world.connected(user=world.user("bob"))
    sub, ann_events, _ctx = await world.subscribed(ann, channel)
    _sub, bob_events, _ctx = await world.subscribed(bob, channel)
    for n in (1, 2, 3):
        await sub.publish(world.encode({"n": n}))
    for events in (ann_events, bob_events):
        for n in (1, 2, 3):
            pub = (await events.take("publication")).pub
            equal((world.decode(pub.data), pub.offset), ({"n": n}, n), "publication")
            equal((pub.info.user, pub.info.client), (world.user(), ann_id), "publisher")


async def publish_denied(world):
    """publish without permission"""
    client, _events, _id = await world.connected()
    error = await rejected(client.publish(world.channel("chat"), world.encode({})), ReplyError, "publish")
    equal((error.code, error.temporary), (103, False), "error")


async def history(world):
    """history"""
    channel = world.channel("chat")
    client, _events, _id = await world.connected()
    sub, _events, _ctx = await world.subscribed(client, channel)
    for n in (1, 2, 3):
        await world.publish(channel, {"n": n})
    page = await sub.history(limit=10)
    equal([world.decode(pub.data)["n"] for pub in page.publications], [1, 2, 3], "forward")
    equal(page.offset, 3, "top")
    newest = await sub.history(limit=1, reverse=True)
    equal([pub.offset for pub in newest.publications], [3], "newest")
    later = await sub.history(limit=10, since=StreamPosition(1, page.epoch))
    equal([pub.offset for pub in later.publications], [2, 3], "since")


async def presence(world):
    """presence and presence stats"""
    channel = world.channel("chat")
    ann, _events, ann_id = await world.connected()
    bob, _events, bob_id = await world.connected(user=world.user("bob"), info={"nick": "Bo"})
    sub, _events, _ctx = await world.subscribed(ann, channel)
    await world.subscribed(bob, channel)
    clients = (await sub.presence()).clients
    equal(set(clients), {ann_id, bob_id}, "clients")
    equal(world.decode(clients[bob_id].conn_info), {"nick": "Bo"}, "connection info")
    stats = await sub.presence_stats()
    equal((stats.num_clients, stats.num_users), (2, 2), "stats")


async def join_leave(world):
    """join and leave"""
    channel = world.channel("chat")
    ann, _events, ann_id = await world.connected()
    _sub, events, _ctx = await world.subscribed(ann, channel, join_leave=True)
    equal((await events.take("join")).info.client, ann_id, "own join")
    bob, _events, bob_id = await world.connected(user=world.user("bob"))
    sub, _events, _ctx = await world.subscribed(bob, channel)
    equal((await events.take("join")).info.user, world.user("bob"), "join")
    await sub.unsubscribe()
    equal((await events.take("leave")).info.client, bob_id, "leave")


async def server_side(world):
    """server-side subscriptions from the token and by API"""
    first, second = world.channel("news", "a"), world.channel("news", "b")
    _client, events, _id = await world.connected(channels=[first])
    equal((await events.take("subscribed")).channel, first, "from the token")
    await world.api.subscribe(cent.SubscribeRequest(user=world.user(), channel=second))
    equal((await events.take("subscribed")).channel, second, "by API")
    for channel in (first, second):
        await world.publish(channel, {"to": channel})
        ctx = await events.take("publication")
        equal((ctx.channel, world.decode(ctx.pub.data)), (channel, {"to": channel}), "publication")
    await world.api.unsubscribe(cent.UnsubscribeRequest(user=world.user(), channel=second))
    equal((await events.take("unsubscribed")).channel, second, "unsubscribed")


async def server_side_recovery(world):
    """server-side recovery"""
    channel = world.channel("news")
    proxy = await world.proxy()
    _client, events, _id = await world.connected(url=proxy.url, channels=[channel])
    await events.take("subscribed")
    await world.publish(channel, {"n": 1})
    await events.take("publication")
    proxy.cut()
    await events.take("connecting", _lost)
    for n in (2, 3):
        await world.publish(channel, {"n": n})
    proxy.restore()
    again = await events.take("subscribed")
    equal((again.was_recovering, again.recovered), (True, True), "recovered")
    for n in (2, 3):
        equal(world.decode((await events.take("publication")).pub.data), {"n": n}, "data")


async def _lose(world, missed):
    channel = world.channel("chat")
    proxy = await world.proxy()
    client, client_events, _id = await world.connected(url=proxy.url)
    _sub, events, _ctx = await world.subscribed(client, channel)
    await world.publish(channel, {"n": 1})
    await events.take("publication")
    proxy.cut()
    await client_events.take("connecting", _lost)
    for n in range(2, 2 + missed):
        await world.publish(channel, {"n": n})
    proxy.restore()
    return channel, events, await events.take("subscribed")


async def recovery(world):
    """recovery with enough history"""
    channel, events, again = await _lose(world, 5)
    equal((again.was_recovering, again.recovered), (True, True), "recovered")
    await world.publish(channel, {"n": 7})
    for n in range(2, 8):
        pub = (await events.take("publication")).pub
        equal((world.decode(pub.data)["n"], pub.offset), (n, n), "publication")
    events.none("publication")


async def recovery_without_history(world):
    """recovery without enough history"""
    channel, events, again = await _lose(world, HISTORY_SIZE + 5)
    equal((again.was_recovering, again.recovered), (True, False), "recovered")
    following = HISTORY_SIZE + 7
    await world.publish(channel, {"n": following})
    equal((await events.take("publication")).pub.offset, following, "first publication")


async def slow_consumer(world):
    """a slow consumer is cut off and comes back"""
    channel = world.channel("chat")
    proxy = await world.proxy()
    client, client_events, _id = await world.connected(url=proxy.url)
    _sub, events, _ctx = await world.subscribed(client, channel)
    proxy.stall()
    # More than the kernel's buffers and the gateway's queue hold together; presence tells when it gave up.
    text = "x" * 60_000
    sent, present = 0, 1
    while present > 0:
        check(sent < 4_000, "a reader that does not read is cut off")
        for _ in range(20):
            sent += 1
            await world.publish(channel, {"n": sent, "text": text})
        present = (await world.api.presence_stats(cent.PresenceStatsRequest(channel=channel))).num_clients
    proxy.flow()
    equal((await client_events.take("connecting", _lost)).code, 3008, "code")
    await events.take("subscribed")
    await world.publish(channel, {"n": sent + 1})
    last = 0
    while last < sent + 1:
        pub = (await events.take("publication")).pub
        check(pub.offset > last, f"offset {pub.offset} after {last}")
        equal(world.decode(pub.data)["n"], pub.offset, "payload of the offset")
        last = pub.offset


async def unsubscribe_by_client(world):
    """unsubscribe by the client"""
    channel = world.channel("bare")
    bob, _events, _id = await world.connected(user=world.user("bob"))
    _sub, witness, _ctx = await world.subscribed(bob, channel)
    client, client_events, _id = await world.connected()
    sub, events, _ctx = await world.subscribed(client, channel)
    later = world.channel("bare", "later")
    _sub, later_events, _ctx = await world.subscribed(client, later)
    await sub.unsubscribe()
    equal((await events.take("unsubscribed")).code, 0, "code")
    # Commands are handled in order, so the reply to this one tells that the unsubscribe was carried out.
    await rejected(client.rpc("anything", world.encode({})), ReplyError, "rpc")
    await world.publish(channel, {"missed": True})
    # Taken on one node it may still be on its way to another, where a subscription made meanwhile would get it too.
    equal(world.decode((await witness.take("publication")).pub.data), {"missed": True}, "data of the witness")
    # The client's shard may be behind that of the witness, but takes what comes to the node in its order.
    await world.publish(later, {})
    await later_events.take("publication")
    await sub.subscribe()
    await events.take("subscribed")
    await world.publish(channel, {"missed": False})
    equal(world.decode((await events.take("publication")).pub.data), {"missed": False}, "data")
    client_events.none("disconnected", "error")


async def unsubscribe_by_api(world):
    """unsubscribe by the server API"""
    channel = world.channel("chat")
    client, client_events, _id = await world.connected()
    _sub, events, _ctx = await world.subscribed(client, channel)
    await world.api.unsubscribe(cent.UnsubscribeRequest(user=world.user(), channel=channel))
    end = await events.take("unsubscribed")
    equal((end.code, end.reason), (2000, "server unsubscribe"), "unsubscribed")
    client_events.none("disconnected")


async def disconnect_by_api(world):
    """disconnect by the server API is final"""
    _client, events, _id = await world.connected()
    await world.api.disconnect(cent.DisconnectRequest(user=world.user()))
    end = await events.take("disconnected")
    equal((end.code, end.reason), (3503, "force disconnect"), "disconnected")


async def reconnect_by_api(world):
    """disconnect by the server API with a code that reconnects"""
    _client, events, client_id = await world.connected()
    await world.api.disconnect(
        cent.DisconnectRequest(user=world.user(), disconnect=cent.Disconnect(code=4000, reason="come again"))
    )
    await events.take("connecting", lambda ctx: (ctx.code, ctx.reason) == (4000, "come again"))
    await events.take("connected", lambda ctx: ctx.client != client_id)
    events.none("disconnected")


async def oversize(world):
    """an oversize message"""
    channel = world.channel("chat")
    client, events, _id = await world.connected()
    sub, _events, _ctx = await world.subscribed(client, channel)
    # It raises, because the connection ends before a reply could come.
    await rejected(sub.publish(world.encode({"text": "x" * 70_000})), CentrifugeError, "publish")
    # This SDK reconnects after 1009 and names the reason; the gateway must be there for it.
    end = await events.take("connecting", _lost)
    equal((end.code, end.reason), (3, "message size limit"), "connecting")
    await events.take("connected")


SCENARIOS = [
    connect_with_token,
    invalid_token,
    expired_token,
    token_refresh,
    subscribe_with_token,
    subscribe_denied,
    subscription_token_refresh,
    publish,
    publish_denied,
    history,
    presence,
    join_leave,
    server_side,
    server_side_recovery,
    recovery,
    recovery_without_history,
    slow_consumer,
    unsubscribe_by_client,
    unsubscribe_by_api,
    disconnect_by_api,
    reconnect_by_api,
    oversize,
]
