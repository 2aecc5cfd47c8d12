// Subscriptions that the server makes: from the connection token and through the server API.

import { equal } from '../kit.js';

export const scenarios = [
  {
    name: 'server-side subscriptions from the token',
    async run(world) {
      const [first, second] = [world.channel('news', 'a'), world.channel('news', 'b')];
      const { client, events } = await world.client({ claims: { channels: [first, second] } });
      client.connect();
      await events.take('connected');
      const seen = [(await events.take('subscribed')).channel, (await events.take('subscribed')).channel];
      equal(seen.sort(), [first, second].sort(), 'channels');
      await world.publish(second, { n: 1 });
      const publication = await events.take('publication');
      equal([publication.channel, world.decode(publication.data)], [second, { n: 1 }], 'publication');
    },
  },
  {
    name: 'server-side subscription and unsubscription by API',
    async run(world) {
      const channel = world.channel('news');
      const { client, events } = await world.connected();
      const data = { welcome: true };
      await world.backend.api('subscribe', { user: world.user('ann'), channel, data });
      const subscribed = await events.take('subscribed');
      equal([subscribed.channel, world.decode(subscribed.data)], [channel, data], 'subscribed');
      await world.publish(channel, { n: 1 });
      equal(world.decode((await events.take('publication')).data), { n: 1 }, 'data');
      await world.backend.api('unsubscribe', { user: world.user('ann'), channel });
      equal((await events.take('unsubscribed')).channel, channel, 'unsubscribed');
      equal(client.state, 'connected', 'state');
    },
  },
  {
    name: 'join and leave of a server-side subscription',
    async run(world) {
      const channel = world.channel('lobby');
      const { events } = await world.connected({ claims: { channels: [channel] } });
      const bob = await world.connected({ user: world.user('bob'), claims: { channels: [channel] } });
      const join = await events.take('join', (ctx) => ctx.info.client === bob.id);
      equal([join.channel, join.info.user], [channel, world.user('bob')], 'join');
      bob.client.disconnect();
      equal((await events.take('leave')).info.client, bob.id, 'leave');
    },
  },
  {
    name: 'server-side recovery',
    async run(world) {
      const channel = world.channel('news');
      const proxy = await world.proxy();
      const { events } = await world.connected({ url: proxy.url, claims: { channels: [channel] } });
      await events.take('subscribed');
      await world.publish(channel, { n: 1 });
      await events.take('publication');
      await proxy.cut();
      await events.take('connecting', (ctx) => ctx.code !== 0);
      for (const n of [2, 3]) await world.publish(channel, { n });
      await proxy.restore();
      const again = await events.take('subscribed');
      equal([again.wasRecovering, again.recovered], [true, true], 'recovered');
      for (const n of [2, 3]) equal(world.decode((await events.take('publication')).data), { n }, 'data');
      events.none('unsubscribed');
    },
  },
  {
    name: 'a server-side channel that the next token lacks is reported',
    async run(world) {
      const [kept, lost] = [world.channel('news', 'kept'), world.channel('news', 'lost')];
      const proxy = await world.proxy();
      const { client, events } = await world.connected({ url: proxy.url, claims: { channels: [kept, lost] } });
      await events.take('subscribed');
      await events.take('subscribed');
      await proxy.cut();
      await events.take('connecting', (ctx) => ctx.code !== 0);
      client.setToken(await world.backend.connectionToken({ sub: world.user('ann'), channels: [kept] }));
      await proxy.restore();
      await events.take('connected');
      equal((await events.take('unsubscribed')).channel, lost, 'unsubscribed');
    },
  },
];
