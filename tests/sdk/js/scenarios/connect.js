// Connecting, and staying connected with tokens that expire.

import { check, Counter, equal, SHORT_TTL } from '../kit.js';

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

export const scenarios = [
  {
    name: 'connect with a token',
    async run(world) {
      const { client, events } = await world.client();
      client.connect();
      const hello = await events.take('connected');
      check(UUID.test(hello.client), `client id is a UUID v4: ${hello.client}`);
      equal(hello.transport, 'websocket', 'transport');
      client.disconnect();
      const bye = await events.take('disconnected');
      equal(bye.code, 0, 'code of a disconnect asked for');
    },
  },
  {
    name: 'connect and subscribe in the first frame',
    async run(world) {
      const { client, events } = await world.client();
      const subs = ['a', 'b', 'c'].map((name) => world.subscription(client, world.channel('chat', name)));
      for (const { sub } of subs) sub.subscribe();
      client.connect();
      await events.take('connected');
      for (const one of subs) await one.events.take('subscribed');
      events.none('error', 'disconnected');
    },
  },
  {
    name: 'an invalid token is final',
    async run(world) {
      const { client, events } = await world.client({ token: 'not.a.token' });
      client.connect();
      const end = await events.take('disconnected');
      equal([end.code, end.reason], [3500, 'invalid token'], 'close');
    },
  },
  {
    name: 'an expired token is replaced',
    async run(world) {
      const calls = new Counter();
      const { client, events } = await world.client({
        claims: { ttl: -5 },
        getToken: async () => {
          calls.add();
          return world.backend.connectionToken({ sub: world.user('ann') });
        },
      });
      client.connect();
      await events.take('connected');
      await calls.reaches(1, 'getToken');
      events.none('disconnected');
    },
  },
  {
    name: 'token refresh keeps the connection',
    async run(world) {
      const calls = new Counter();
      const { client, events } = await world.client({
        claims: { ttl: SHORT_TTL },
        getToken: async () => {
          calls.add();
          return world.backend.connectionToken({ sub: world.user('ann'), ttl: SHORT_TTL });
        },
      });
      client.connect();
      await events.take('connected');
      // A third call is scheduled only by the reply to the second refresh, so two refreshes have succeeded by then.
      await calls.reaches(3, 'getToken');
      equal(client.state, 'connected', 'state');
      await events.take('connecting', (ctx) => ctx.code === 0);
      events.none('error', 'connecting', 'disconnected');
    },
  },
  {
    name: 'connection info comes from the token',
    async run(world) {
      const channel = world.channel('chat');
      const { client, id } = await world.connected({ claims: { info: { nick: 'Mo' } } });
      const { sub } = await world.subscribed(client, channel);
      const { clients } = await sub.presence();
      equal(Object.keys(clients), [id], 'members');
      equal(world.decode(clients[id].connInfo), { nick: 'Mo' }, 'connection info');
      equal(clients[id].user, world.user('ann'), 'user');
    },
  },
];
