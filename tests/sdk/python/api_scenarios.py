"""Scenarios of the server API SDK. The docstring of each function is its name in the report."""

import time

import cent
from cent import CentApiResponseError, CentUnauthorizedError
from centrifuge.exceptions import ReplyError

from kit import check, equal, rejected


async def _undisturbed(world, client, events, *names):
    """Had none of these events: the reply to a command comes after whatever the client was sent before."""
    await rejected(client.rpc("anything", world.encode({})), ReplyError, "rpc")
    events.none(*names)


async def wrong_key(world):
    """a wrong API key"""
    stranger = cent.AsyncClient(world.settings.api, "wrong")
    try:
        await rejected(stranger.info(cent.InfoRequest()), CentUnauthorizedError, "info")
    finally:
        await stranger.close()


async def publish(world):
    """publish returns a position, once per idempotency key"""
    channel = world.channel("chat")
    first = await world.publish(channel, {"n": 1}, idempotency_key="a")
    again = await world.publish(channel, {"n": 1}, idempotency_key="a")
    second = await world.publish(channel, {"n": 2}, idempotency_key="b")
    check(0 < first.offset == again.offset < second.offset, f"offsets: {first}, {again}, {second}")
    check(first.epoch and first.epoch == again.epoch == second.epoch, "one epoch")
    skipped = await world.publish(channel, {"n": 3}, skip_history=True)
    equal((skipped.offset, skipped.epoch), (0, ""), "position of a publication without history")


async def publish_error(world):
    """an API error has its code"""
    error = await rejected(world.publish(world.channel("nosuch"), {}), CentApiResponseError, "publish")
    equal(error.code, 102, "code")


async def broadcast(world):
    """broadcast"""
    channels = [world.channel("chat", "a"), world.channel("nosuch"), world.channel("chat", "b")]
    result = await world.api.broadcast(cent.BroadcastRequest(channels=channels, data={"n": 1}))
    equal([response.error.code if response.error else None for response in result.responses], [None, 102, None], "errors")
    offsets = [response.result.offset for response in result.responses if response.result]
    check(len(offsets) == 2 and min(offsets) > 0, f"offsets: {offsets}")


async def subscribe_and_unsubscribe(world):
    """subscribe and unsubscribe"""
    channel = world.channel("news")
    _client, events, client_id = await world.connected()
    other, other_events, _id = await world.connected()
    await world.api.subscribe(
        cent.SubscribeRequest(user=world.user(), channel=channel, client=client_id, data={"hello": True})
    )
    ctx = await events.take("subscribed")
    equal((ctx.channel, world.decode(ctx.data)), (channel, {"hello": True}), "subscribed")
    await world.api.unsubscribe(cent.UnsubscribeRequest(user=world.user(), channel=channel))
    await events.take("unsubscribed")
    await _undisturbed(world, other, other_events, "subscribed", "unsubscribed")


async def subscribe_override(world):
    """subscribe with overridden options"""
    channel = world.channel("bare")
    _client, events, client_id = await world.connected()
    override = cent.ChannelOptionsOverride(presence=cent.BoolValue(value=True))
    await world.api.subscribe(cent.SubscribeRequest(user=world.user(), channel=channel, override=override))
    await events.take("subscribed")
    result = await world.api.channels(cent.ChannelsRequest(pattern=channel))
    equal(result.channels[channel].num_clients, 1, "subscribers")
    check(client_id, "an id")


async def disconnect(world):
    """disconnect, with a white list"""
    kept, kept_events, kept_id = await world.connected()
    _gone, gone_events, _id = await world.connected()
    await world.api.disconnect(
        cent.DisconnectRequest(
            user=world.user(), whitelist=[kept_id], disconnect=cent.Disconnect(code=4501, reason="one only")
        )
    )
    end = await gone_events.take("disconnected")
    equal((end.code, end.reason), (4501, "one only"), "disconnected")
    await _undisturbed(world, kept, kept_events, "disconnected")


async def refresh(world):
    """refresh"""
    client, events, _id = await world.connected()
    await world.api.refresh(cent.RefreshRequest(user=world.user(), expire_at=int(time.time()) + 600))
    await events.take("connecting")
    await _undisturbed(world, client, events, "connecting", "disconnected")
    await world.api.refresh(cent.RefreshRequest(user=world.user(), expired=True))
    await events.take("connecting", lambda ctx: ctx.code == 3005)


async def presence(world):
    """presence and presence stats"""
    channel = world.channel("chat")
    client, _events, client_id = await world.connected(info={"nick": "Mo"})
    await world.subscribed(client, channel)
    result = await world.api.presence(cent.PresenceRequest(channel=channel))
    member = result.presence[client_id]
    equal((member.user, member.client, member.conn_info), (world.user(), client_id, {"nick": "Mo"}), "member")
    stats = await world.api.presence_stats(cent.PresenceStatsRequest(channel=channel))
    equal((stats.num_clients, stats.num_users), (1, 1), "stats")


async def presence_off(world):
    """presence where it is off"""
    request = cent.PresenceRequest(channel=world.channel("bare"))
    equal((await rejected(world.api.presence(request), CentApiResponseError, "presence")).code, 108, "code")


async def history(world):
    """history and history_remove"""
    channel = world.channel("chat")
    for n in (1, 2, 3):
        await world.publish(channel, {"n": n}, tags={"n": str(n)})
    page = await world.api.history(cent.HistoryRequest(channel=channel, limit=10))
    equal([(pub.data["n"], pub.tags) for pub in page.publications],
          [(n, {"n": str(n)}) for n in (1, 2, 3)], "publications")
    first, second, third = (pub.offset for pub in page.publications)
    check(0 < first < second < third == page.offset, f"offsets: {page}")
    since = cent.StreamPosition(offset=third, epoch=page.epoch)
    back = await world.api.history(cent.HistoryRequest(channel=channel, limit=10, reverse=True, since=since))
    equal([pub.offset for pub in back.publications], [second, first], "reverse")
    wrong = cent.HistoryRequest(channel=channel, limit=1, since=cent.StreamPosition(offset=first, epoch="other"))
    equal((await rejected(world.api.history(wrong), CentApiResponseError, "other epoch")).code, 112, "code")
    await world.api.history_remove(cent.HistoryRemoveRequest(channel=channel))
    empty = await world.api.history(cent.HistoryRequest(channel=channel, limit=10))
    equal((empty.publications, empty.epoch), ([], page.epoch), "after history_remove")
    check(empty.offset >= third, f"the top after history_remove: {empty.offset}, {third} before")


async def channels(world):
    """channels"""
    names = [world.channel("chat", name) for name in ("x1", "x2", "y1")]
    client, _events, _id = await world.connected()
    for name in names:
        await world.subscribed(client, name)
    result = await world.api.channels(cent.ChannelsRequest(pattern=f"chat:x*{world.label}"))
    equal({name: info.num_clients for name, info in result.channels.items()}, {names[0]: 1, names[1]: 1}, "channels")


async def info(world):
    """info"""
    await world.connected()
    nodes = (await world.api.info(cent.InfoRequest())).nodes
    equal(len(nodes), world.settings.nodes, "nodes")
    for node in nodes:
        check(node.uid and node.name and node.version, f"names: {node}")
    check(sum(node.num_clients for node in nodes) >= 1, f"clients: {nodes}")


async def batch(world):
    """batch, in order and parallel"""
    channel = world.channel("chat")
    for parallel in (False, True):
        requests = [
            cent.PublishRequest(channel=channel, data={"parallel": parallel}),
            cent.PresenceStatsRequest(channel=channel),
            cent.HistoryRequest(channel=channel),
        ]
        result = await world.api.batch(cent.BatchRequest(requests=requests, parallel=parallel))
        equal([type(reply) for reply in result.replies],
              [cent.PublishResult, cent.PresenceStatsResult, cent.HistoryResult], "replies")
        check(result.replies[0].offset > 0, "a position")


SCENARIOS = [
    wrong_key,
    publish,
    publish_error,
    broadcast,
    subscribe_and_unsubscribe,
    subscribe_override,
    disconnect,
    refresh,
    presence,
    presence_off,
    history,
    channels,
    info,
    batch,
]
