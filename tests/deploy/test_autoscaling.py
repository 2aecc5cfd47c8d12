"""What the autoscaler is told: a real Prometheus scrapes three real nodes on Redis, and the number of replicas that follows
from the shipped ScaledObject is right, also while scrapes fail, nodes are cut off and Redis is away."""

import json
import math
import unittest
import urllib.parse

import kit
import servers

# The manifest is for 35,000 connections to a pod, these nodes have a few: each counts for so many.
WORTH = 7000

# A node is told no total by a digest older than 15 s; the rest is for scrapes and for machines that are busy (seconds).
STALE = 40.0

ELSEWHERE = "elsewhere"


class Autoscaler:
    """What KEDA and the HorizontalPodAutoscaler make of a ScaledObject with one Prometheus trigger.

    By KEDA's documentation of the scaler and of `fallback`, and by Kubernetes' of the algorithm: an answer without a value is
    an error unless `ignoreNullValues`, several values always are; after errors the fallback decides; a ratio within 10 % changes
    nothing. How fast it may change (`behavior`) is not in here."""

    TOLERANCE = 0.1

    def __init__(self, scaled):
        spec = scaled["spec"]
        (trigger,) = spec["triggers"]
        self.query = trigger["metadata"]["query"]
        self.threshold = float(trigger["metadata"]["threshold"]) / WORTH
        self.null_is_zero = trigger["metadata"].get("ignoreNullValues", "true") == "true"
        self.least, self.most = spec["minReplicaCount"], spec["maxReplicaCount"]
        self.fallback = spec.get("fallback")

    def value(self, prometheus):
        """The total that Prometheus answers; `None` for an error."""
        samples = prometheus.query(self.query)
        if samples == [] and self.null_is_zero:
            return 0.0
        if samples is None or len(samples) != 1:
            return None
        return samples[0][1]

    def replicas(self, value, current):
        if value is None:
            return self.clamp(self.without_value(current))
        if abs(1 - value / (self.threshold * current)) <= self.TOLERANCE:
            return self.clamp(current)
        return self.clamp(math.ceil(value / self.threshold))

    def without_value(self, current):
        if self.fallback is None:
            return current
        if self.fallback["behavior"] == "currentReplicasIfHigher":
            return max(current, self.fallback["replicas"])
        return self.fallback["replicas"]

    def clamp(self, replicas):
        return min(max(replicas, self.least), self.most)


class Fleet(kit.Check):
    """Three nodes with 16, 10 and 5 connections, and in another namespace one with 40 that are none of theirs."""

    def setUp(self):
        super().setUp()
        self.autoscaler = Autoscaler(kit.find(kit.load_all(kit.overlay("examples/redis")), "ScaledObject"))
        self.redis = servers.Redis(self)
        # Each node has a way of its own to Redis, and Prometheus to each node.
        self.ways = [servers.Front(self, self.redis.port) for _ in range(3)]
        self.nodes = [servers.Gateway(self, way.port) for way in self.ways]
        stranger = servers.Gateway(self)
        self.scrapes = [servers.Front(self, node.internal.split(":")[1]) for node in self.nodes]
        targets = {f"127.0.0.1:{front.port}": "evenkeel" for front in self.scrapes} | {stranger.internal: ELSEWHERE}
        self.prometheus = servers.Prometheus(self, targets)
        token = stranger.token("ann")
        self.clients = [[servers.Client(self, node, token) for _ in range(count)]
                        for node, count in zip([*self.nodes, stranger], [16, 10, 5, 40])]
        self.settles("all is well", 31, current=3, replicas=7)
        for node in self.nodes:
            servers.until("all nodes to have one total", lambda: node.metric("gateway_fleet_connections") == 31)

    def close(self, node, count):
        for _ in range(count):
            self.clients[node].pop().close()

    def settles(self, case, value, current, replicas, never_below=0.0, deadline=kit.DEADLINE):
        """Waits until the query has this value, on the way to which it may not be lower than that, and compares replicas."""

        def has_come():
            got = self.autoscaler.value(self.prometheus)
            self.assertGreaterEqual(math.inf if got is None else got, never_below, case)
            return got == value

        servers.until(f"{case}: the value {value}", has_come, deadline)
        self.assertEqual(self.autoscaler.replicas(value, current), replicas, case)

    def scraped(self, count):
        servers.until(f"{count} nodes to be scraped", lambda: self.prometheus.query("sum(up)") == [({}, float(count))])


class MissingScrapes(Fleet):
    def test_the_number_of_replicas_does_not_fall(self):
        self.scrapes[0].cut()
        self.scraped(3)
        self.settles("one scrape of three is missing, that of the fullest", 31, current=3, replicas=7, never_below=31)
        self.scrapes[2].cut()
        self.scraped(2)
        self.settles("two of three are missing", 31, current=7, replicas=7, never_below=31)
        self.scrapes[1].cut()
        self.scraped(1)
        self.settles("all are missing", None, current=7, replicas=7, never_below=31)
        self.assertEqual(self.autoscaler.replicas(None, 2), 3, "the fallback is for a fleet that is too small anyway")
        for front in self.scrapes:
            front.restore()
        self.scraped(4)
        self.settles("all are back", 31, current=7, replicas=7)
        self.settles("within ten percent", 31, current=6, replicas=6)
        self.prometheus.kill()
        self.settles("Prometheus is gone", None, current=7, replicas=7)


class AskedDirectly(Fleet):
    """The variant without Prometheus."""

    def test_any_node_tells_the_total_of_all_or_an_error(self):
        (trigger,) = kit.find(kit.load_all(kit.overlay("keda-metrics-api")), "ScaledObject")["spec"]["triggers"]
        asked = trigger["metadata"]
        self.assertEqual(trigger["type"], "metrics-api")
        self.assertEqual(float(asked["targetValue"]) / WORTH, self.autoscaler.threshold)
        path = urllib.parse.urlsplit(asked["url"]).path
        for node in self.nodes:
            status, body = servers.fetch(f"http://{node.internal}{path}")
            self.assertEqual((status, json.loads(body)[asked["valueLocation"]]), (200, 31))
        self.ways[2].cut()
        url = f"http://{self.nodes[2].internal}{path}"
        servers.until("an error from the node that knows nothing", lambda: servers.fetch(url)[0] == 503, STALE)


class StaleDigests(Fleet):
    def test_what_nobody_vouches_for_does_not_count(self):
        self.ways[2].cut()
        self.close(0, 4)
        self.settles("a node without Redis does not go on with what it knew", 22, current=7, replicas=5,
                     never_below=22, deadline=STALE)
        servers.until("its total to be absent", lambda: self.nodes[2].metric("gateway_fleet_connections") is None, STALE)
        self.ways[2].restore()
        self.settles("it is back", 27, current=7, replicas=6, never_below=22, deadline=STALE)
        self.redis.freeze()
        self.settles("Redis is away for all", None, current=6, replicas=6, never_below=27, deadline=STALE)
        self.assertEqual(self.prometheus.query("sum(up)"), [({}, 4.0)], "every scrape succeeds")
        self.redis.resume()
        self.settles("Redis is back", 27, current=6, replicas=6, deadline=STALE)


class Fewer(Fleet):
    def test_what_is_gone_is_gone(self):
        self.nodes[0].kill()
        self.settles("a node has died with its connections", 15, current=7, replicas=3, never_below=15, deadline=STALE)
        self.close(1, 10)
        self.close(2, 5)
        self.settles("nobody is connected, which is not the same as not knowing", 0, current=4, replicas=3)


if __name__ == "__main__":
    unittest.main()
