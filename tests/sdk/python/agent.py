"""SDK clients that are commanded and observed from outside: commands as lines of JSON on standard input, answers and
events on standard output, in the words of the JavaScript SDK."""

import asyncio
import json
import sys

from centrifuge import CentrifugeError, Client, ClientEventHandler, SubscriptionEventHandler

_CLIENT_EVENTS = "connecting connected disconnected error".split()
_SUBSCRIPTION_EVENTS = "subscribing subscribed unsubscribed publication join leave error".split()


def emit(message):
    print(json.dumps(message), flush=True)


def plain(value):
    """The attributes of a context as the JavaScript SDK names them."""
    if isinstance(value, BaseException):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if not hasattr(value, "__dict__"):
        return value
    named = {}
    for name, inner in vars(value).items():
        first, *others = name.split("_")
        named[first + "".join(word.capitalize() for word in others)] = plain(inner)
    # The publication's attributes are the context's own there.
    return {**named, **named.pop("pub", {})}


def handlers(base, names, client, channel):
    def recorder(event):
        async def record(_self, context):
            emit({"client": client, "channel": channel, "event": event, "context": plain(context)})

        return record

    return type("Recorder", (base,), {f"on_{name}": recorder(name) for name in names})()


class Agent:
    """Carries out commands; the operations are its public methods."""

    def __init__(self):
        self._clients = {}

    async def hello(self):
        return {}

    async def connect(self, client, url, token="", options=None):
        self._clients[client] = Client(
            url,
            events=handlers(ClientEventHandler, _CLIENT_EVENTS, client, ""),
            token=token,
            min_reconnect_delay=0.02,
            max_reconnect_delay=0.2,
            proxy=None,
            **(options or {}),
        )
        await self._clients[client].connect()
        return {}

    async def subscribe(self, client, channel, options=None):
        sub = self._clients[client].new_subscription(
            channel,
            events=handlers(SubscriptionEventHandler, _SUBSCRIPTION_EVENTS, client, channel),
            min_resubscribe_delay=0.02,
            max_resubscribe_delay=0.2,
            **(options or {}),
        )
        await sub.subscribe()
        return {}

    async def rpc(self, client, method, data):
        result = await self._clients[client].rpc(method, data)
        return {"data": result.data}

    async def publish(self, client, channel, data):
        await self._clients[client].get_subscription(channel).publish(data)
        return {}

    async def close(self):
        for client in self._clients.values():
            await client.disconnect()


async def answer(agent, command):
    call, op = command.pop("call"), command.pop("op")
    try:
        emit({"call": call, "result": await getattr(agent, op)(**command)})
    except CentrifugeError as error:
        emit({"call": call, "error": {"code": getattr(error, "code", -1), "message": str(error)}})


async def main():
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    agent = Agent()
    answers = set()
    while line := await reader.readline():
        # Not awaited: a command may last until a later one.
        task = asyncio.ensure_future(answer(agent, json.loads(line)))
        answers.add(task)
        task.add_done_callback(answers.discard)
    await agent.close()


if __name__ == "__main__":
    asyncio.run(main())
