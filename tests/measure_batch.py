"""Publishes with history per second through `/api/batch`: python3 measure_batch.py API_URL API_KEY."""

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

CONNECTIONS = 4
COMMANDS = 100
CHANNELS = 1000
SECONDS = 5
DEADLINE = 30

api, key = urlsplit(sys.argv[1]), sys.argv[2]
done = [0] * CONNECTIONS
failed = [0] * CONNECTIONS


def body(start):
    """One batch, each command to another channel."""
    channels = (f"batch-{(start + n) % CHANNELS}" for n in range(COMMANDS))
    commands = [{"publish": {"channel": channel, "data": {"text": "x" * 116}}} for channel in channels]
    return json.dumps({"commands": commands, "parallel": True}).encode()


def publish(index, until):
    connection = http.client.HTTPConnection(api.hostname, api.port, timeout=DEADLINE)
    bodies = [body(start) for start in range(0, CHANNELS, COMMANDS)]
    turn = index
    while time.monotonic() < until:
        connection.request("POST", f"{api.path}/batch", bodies[turn % len(bodies)], {"X-API-Key": key})
        answer = connection.getresponse().read()
        turn += 1
        published = answer.count(b'"offset"')
        done[index] += published
        failed[index] += COMMANDS - published
    connection.close()


began = time.monotonic()
threads = [threading.Thread(target=publish, args=(index, began + SECONDS)) for index in range(CONNECTIONS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
took = time.monotonic() - began
print(f"{sum(done) / took:.0f} publishes per second, {sum(failed)} failed, {COMMANDS} in a batch, {CONNECTIONS} connections")
sys.exit(1 if sum(failed) or not sum(done) else 0)
