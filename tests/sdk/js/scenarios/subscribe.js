// Client-side subscriptions: permissions, publications, history, presence, join and leave.

import { check, Counter, equal, rejected, SHORT_TTL } from '../kit.js';

export const scenarios = [
  {
    name: 'subscribe with a token',
    async run(world) {
      const channel = world.channel('vault');
      const { client } = await world.connected();
      const { events } = await world.subscribed(client, channel, {
        token: await world.backend.subscriptionToken({ sub: world.user('ann'), channel }),
      });
      await world.publish(channel, { n: 1 });
      equal(world.decode((await events.take('publication')).data), { n: 1 }, 'data');
    },
  },
  {
    name: 'subscribe without the token that is needed',
    async run(world) {
      const { client } = await world.connected();
      const { sub, events } = world.subscription(client, world.channel('vault'));
      sub.subscribe();
      const end = await events.take('unsubscribed');
      equal([end.code, end.reason], [103, 'permission denied'], 'unsubscribed');
    },
  },
  {
    name: 'an unknown namespace',
    async run(world) {
      const { client } = await world.connected();
      const { sub, events } = world.subscription(client, world.channel('nosuch'));
      sub.subscribe();
      equal((await events.take('unsubscribed')).code, 102, 'code');
    },
  },
  {
    name: 'subscription token refresh',
    async run(world) {
      const channel = world.channel('vault');
      const calls = new Counter();
      const { client } = await world.connected();
      const { sub, events } = await world.subscribed(client, channel, {
        getToken: async () => {
          calls.add();
          return world.backend.subscriptionToken({ sub: world.user('ann'), channel, ttl: SHORT_TTL });
        },
      });
      await calls.reaches(3, 'getToken of the subscription');
      equal(sub.state, 'subscribed', 'state');
      // Who is refused a refresh subscribes anew, with a token that is asked for, too.
      await events.take('subscribing', (ctx) => ctx.code === 0);
      events.none('error', 'subscribing', 'unsubscribed');
    },
  },
  {
    name: 'publish reaches every subscriber, the publisher too',
    async run(world) {
      const channel = world.channel('chat');
      const ann = await world.connected();
      const bob = await world.connected({ user: world.user('bob') });
      const annSub = await world.subscribed(ann.client, channel);
      const bobSub = await world.subscribed(bob.client, channel);
      for (const n of [1, 2, 3]) await annSub.sub.publish(world.encode({ n }));
      const offsets = { ann: [], bob: [] };
      for (const [name, { events }] of [['ann', annSub], ['bob', bobSub]]) {
        for (const n of [1, 2, 3]) {
          const publication = await events.take('publication');
          equal(world.decode(publication.data), { n }, 'data');
          offsets[name].push(publication.offset);
          equal([publication.info.user, publication.info.client], [world.user('ann'), ann.id], 'publisher');
        }
      }
      const [first, second, third] = offsets.ann;
      check(0 < first && first < second && second < third, `increasing offsets: ${offsets.ann}`);
      equal(offsets.bob, offsets.ann, 'the same offsets for both');
    },
  },
  {
    name: 'tags arrive and a server publication has no publisher',
    async run(world) {
      const channel = world.channel('chat');
      const { client } = await world.connected();
      const { events } = await world.subscribed(client, channel);
      await world.publish(channel, { text: 'maintenance' }, { tags: { kind: 'system' } });
      const publication = await events.take('publication');
      equal(publication.tags, { kind: 'system' }, 'tags');
      check(!publication.info, 'no publisher');
    },
  },
  {
    name: 'publish without permission',
    async run(world) {
      const { client } = await world.connected();
      const error = await rejected(client.publish(world.channel('chat'), world.encode({})), 'publish');
      equal(error.code, 103, 'code');
    },
  },
  {
    name: 'history',
    async run(world) {
      const channel = world.channel('chat');
      const { client } = await world.connected();
      const { sub } = await world.subscribed(client, channel);
      for (const n of [1, 2, 3]) await world.publish(channel, { n });
      const all = await sub.history({ limit: 10 });
      equal(all.publications.map((one) => world.decode(one.data).n), [1, 2, 3], 'forward');
      const [first, second, third] = all.publications.map((one) => one.offset);
      check(first < second && second < third, `increasing offsets: ${[first, second, third]}`);
      equal(all.offset, third, 'top');
      const last = await sub.history({ limit: 1, reverse: true });
      equal(last.publications.map((one) => one.offset), [third], 'newest');
      const since = await sub.history({ limit: 10, since: { offset: first, epoch: all.epoch } });
      equal(since.publications.map((one) => one.offset), [second, third], 'since');
      const position = await sub.history();
      equal([position.publications.length, position.offset], [0, third], 'position only');
      const error = await rejected(sub.history({ limit: 1, since: { offset: first, epoch: 'other' } }), 'other epoch');
      equal(error.code, 112, 'code');
    },
  },
  {
    name: 'presence and presence stats',
    async run(world) {
      const channel = world.channel('chat');
      const ann = await world.connected();
      const bob = await world.connected({ user: world.user('bob') });
      const { sub } = await world.subscribed(ann.client, channel);
      await world.subscribed(bob.client, channel);
      const { clients } = await sub.presence();
      equal(Object.keys(clients).sort(), [ann.id, bob.id].sort(), 'clients');
      equal(clients[bob.id].user, world.user('bob'), 'user');
      equal(await sub.presenceStats(), { numClients: 2, numUsers: 2 }, 'stats');
    },
  },
  {
    name: 'join and leave',
    async run(world) {
      const channel = world.channel('chat');
      const ann = await world.connected();
      const { events } = await world.subscribed(ann.client, channel, { joinLeave: true });
      equal((await events.take('join')).info.client, ann.id, 'own join');
      const bob = await world.connected({ user: world.user('bob') });
      const { sub } = await world.subscribed(bob.client, channel);
      const join = await events.take('join');
      equal([join.info.user, join.info.client], [world.user('bob'), bob.id], 'join');
      sub.unsubscribe();
      equal((await events.take('leave')).info.client, bob.id, 'leave after unsubscribe');
      sub.subscribe();
      equal((await events.take('join')).info.client, bob.id, 'join again');
      bob.client.disconnect();
      equal((await events.take('leave')).info.client, bob.id, 'leave after disconnect');
    },
  },
  {
    name: 'unsubscribe by the client',
    async run(world) {
      const channel = world.channel('bare');
      const bob = await world.connected({ user: world.user('bob') });
      const witness = await world.subscribed(bob.client, channel);
      const { client, events: clientEvents } = await world.connected();
      const { sub, events } = await world.subscribed(client, channel);
      const later = world.channel('bare', 'later');
      const { events: laterEvents } = await world.subscribed(client, later);
      sub.unsubscribe();
      equal((await events.take('unsubscribed')).code, 0, 'code');
      // Commands are handled in order, so the reply to this one tells that the unsubscribe was carried out.
      await rejected(client.rpc('anything', world.encode({})), 'rpc');
      await world.publish(channel, { missed: true });
      // Taken on one node it may still be on its way to another, where a subscription made meanwhile would get it too.
      equal(world.decode((await witness.events.take('publication')).data), { missed: true }, 'data of the witness');
      // The client's shard may be behind that of the witness, but takes what comes to the node in its order.
      await world.publish(later, {});
      await laterEvents.take('publication');
      sub.subscribe();
      await events.take('subscribed');
      await world.publish(channel, { missed: false });
      equal(world.decode((await events.take('publication')).data), { missed: false }, 'data');
      clientEvents.none('disconnected', 'error');
    },
  },
  {
    name: 'unsubscribe by the server API',
    async run(world) {
      const channel = world.channel('chat');
      const { client, events: clientEvents } = await world.connected();
      const { events } = await world.subscribed(client, channel);
      await world.backend.api('unsubscribe', { user: world.user('ann'), channel });
      const end = await events.take('unsubscribed');
      equal([end.code, end.reason], [2000, 'server unsubscribe'], 'unsubscribed');
      clientEvents.none('disconnected');
    },
  },
  {
    name: 'rpc without a handler',
    async run(world) {
      const { client } = await world.connected();
      const error = await rejected(client.rpc('anything', world.encode({})), 'rpc');
      equal(error.code, 108, 'code');
    },
  },
];
