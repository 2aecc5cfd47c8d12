// Connections that the server ends.

import { equal } from '../kit.js';

export const scenarios = [
  {
    name: 'disconnect by the server API is final',
    async run(world) {
      const { client, events } = await world.connected();
      await world.backend.api('disconnect', { user: world.user('ann') });
      const end = await events.take('disconnected');
      equal([end.code, end.reason], [3503, 'force disconnect'], 'disconnected');
      equal(client.state, 'disconnected', 'state');
    },
  },
  {
    name: 'disconnect by the server API with a code that reconnects',
    async run(world) {
      const { events, id } = await world.connected();
      await world.backend.api('disconnect', {
        user: world.user('ann'),
        disconnect: { code: 4000, reason: 'come again' },
      });
      await events.take('connecting', (ctx) => ctx.code === 4000 && ctx.reason === 'come again');
      await events.take('connected', (ctx) => ctx.client !== id);
      events.none('disconnected');
    },
  },
  {
    name: 'disconnect by the server API with a final code of its own',
    async run(world) {
      const { events } = await world.connected();
      await world.backend.api('disconnect', {
        user: world.user('ann'),
        disconnect: { code: 4500, reason: 'banned' },
      });
      const end = await events.take('disconnected');
      equal([end.code, end.reason], [4500, 'banned'], 'disconnected');
    },
  },
  {
    name: 'only the named client is disconnected',
    async run(world) {
      const first = await world.connected();
      const second = await world.connected();
      await world.backend.api('disconnect', { user: world.user('ann'), client: first.id });
      await first.events.take('disconnected');
      await second.client.rpc('anything', world.encode({})).catch((error) => equal(error.code, 108, 'code'));
      second.events.none('disconnected');
    },
  },
  {
    name: 'refresh by the server API ends an expired connection',
    async run(world) {
      const { events } = await world.connected();
      await world.backend.api('refresh', { user: world.user('ann'), expired: true });
      await events.take('connecting', (ctx) => ctx.code === 3005);
      await events.take('connected');
    },
  },
  {
    name: 'an oversize message is final',
    async run(world) {
      const channel = world.channel('chat');
      const { client, events } = await world.connected();
      const { sub } = await world.subscribed(client, channel);
      // Rejected, because the connection ends before a reply could come.
      sub.publish(world.encode({ text: 'x'.repeat(70_000) })).catch(() => {});
      const end = await events.take('disconnected');
      equal([end.code, end.reason], [3, 'message size limit exceeded'], 'disconnected');
    },
  },
];
