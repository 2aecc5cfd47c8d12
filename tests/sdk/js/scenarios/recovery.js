// A dropped connection, with and without enough history.

import { check, Counter, equal } from '../kit.js';

/** The size of the history of namespace `chat` in the configuration of these scenarios. */
const HISTORY_SIZE = 10;

/** Another subscriber of the channel, on the node of the client. */
async function watch(world, channel) {
  const bob = await world.connected({ user: world.user('bob') });
  return (await world.subscribed(bob.client, channel)).events;
}

/**
 * Loses the connection after one publication, publishes `missed` more, comes back. With a witness not before that has
 * them: a client that is back has missed nothing of what is still on its way to the node.
 */
async function lose(world, missed, witness) {
  const channel = world.channel('chat');
  const proxy = await world.proxy();
  const { client, events: clientEvents } = await world.connected({ url: proxy.url });
  const { sub, events } = await world.subscribed(client, channel);
  await world.publish(channel, { n: 1 });
  await events.take('publication');
  await proxy.cut();
  await clientEvents.take('connecting', (ctx) => ctx.code !== 0);
  for (let n = 2; n < 2 + missed; n += 1) await world.publish(channel, { n });
  await witness?.take('publication', (ctx) => world.decode(ctx.data).n === 1 + missed);
  await proxy.restore();
  const again = await events.take('subscribed');
  return { channel, sub, events, again };
}

export const scenarios = [
  {
    name: 'recovery with enough history',
    async run(world) {
      const { channel, events, again } = await lose(world, 5);
      equal([again.wasRecovering, again.recovered], [true, true], 'recovered');
      const top = (await world.publish(channel, { n: 7 })).offset;
      let last = 0;
      for (let n = 2; n <= 7; n += 1) {
        const publication = await events.take('publication');
        equal(world.decode(publication.data).n, n, 'publication');
        check(publication.offset > last, `offset ${publication.offset} after ${last}`);
        last = publication.offset;
      }
      equal(last, top, 'offset of the last');
      events.none('publication');
    },
  },
  {
    name: 'recovery of nothing',
    async run(world) {
      const { channel, events, again } = await lose(world, 0);
      equal([again.wasRecovering, again.recovered], [true, true], 'recovered');
      const top = (await world.publish(channel, { n: 2 })).offset;
      equal((await events.take('publication')).offset, top, 'offset');
    },
  },
  {
    name: 'recovery without enough history',
    async run(world) {
      const witness = await watch(world, world.channel('chat'));
      const { channel, events, again } = await lose(world, HISTORY_SIZE + 5, witness);
      equal([again.wasRecovering, again.recovered], [true, false], 'recovered');
      const next = HISTORY_SIZE + 7;
      const top = (await world.publish(channel, { n: next })).offset;
      const publication = await events.take('publication');
      equal([world.decode(publication.data).n, publication.offset], [next, top], 'first publication');
    },
  },
  {
    name: 'recovery after the history was removed',
    async run(world) {
      const channel = world.channel('chat');
      const witness = await watch(world, channel);
      const proxy = await world.proxy();
      const { client, events: clientEvents } = await world.connected({ url: proxy.url });
      const { events } = await world.subscribed(client, channel);
      await world.publish(channel, { n: 1 });
      await events.take('publication');
      await proxy.cut();
      await clientEvents.take('connecting', (ctx) => ctx.code !== 0);
      const top = (await world.publish(channel, { n: 2 })).offset;
      // A client that is back before it has come to the node has not missed it.
      await witness.take('publication', (ctx) => ctx.offset === top);
      await world.backend.api('history_remove', { channel });
      await proxy.restore();
      const again = await events.take('subscribed');
      equal([again.wasRecovering, again.recovered], [true, false], 'recovered');
      check(again.streamPosition.offset >= top, `position ${again.streamPosition.offset}, not below ${top}`);
    },
  },
  {
    name: 'recovery while publications go on',
    async run(world) {
      const channel = world.channel('log');
      const proxy = await world.proxy();
      const { client, events: clientEvents } = await world.connected({ url: proxy.url });
      const { sub, events } = world.subscription(client, channel);
      const seen = [];
      const arrived = new Counter();
      sub.on('publication', (publication) => {
        seen.push([publication.offset, world.decode(publication.data).n]);
        arrived.add();
      });
      sub.subscribe();
      await events.take('subscribed');
      let published = 0;
      let going = true;
      const publisher = (async () => {
        while (going) await world.publish(channel, { n: (published += 1) });
      })();
      const rounds = 3;
      let recovered = 0;
      for (let round = 0; round < rounds; round += 1) {
        await arrived.reaches(seen.length + 5, 'publications');
        await proxy.cut();
        await clientEvents.take('connecting', (ctx) => ctx.code !== 0);
        await proxy.restore();
        if ((await events.take('subscribed')).recovered) recovered += 1;
      }
      going = false;
      await publisher;
      await world.publish(channel, { n: published + 1 });
      for (let last = 0; last <= published; ) last = world.decode((await events.take('publication')).data).n;
      // Neighbours must be neighbours in the channel, but for one gap where the server said that it could not recover.
      let gaps = 0;
      for (const [index, [offset, n]] of seen.entries()) {
        const [offsetBefore, before] = index === 0 ? [0, 0] : seen[index - 1];
        check(offset > offsetBefore, `offset ${offset} after ${offsetBefore}`);
        check(n > before, `${n} after ${before}`);
        if (n !== before + 1) gaps += 1;
      }
      check(gaps <= rounds - recovered, `${gaps} gaps, and ${recovered} of ${rounds} recoveries succeeded`);
    },
  },
  {
    name: 'a slow consumer is cut off and comes back',
    async run(world) {
      const channel = world.channel('chat');
      const proxy = await world.proxy();
      const { client, events: clientEvents } = await world.connected({ url: proxy.url });
      const { events } = await world.subscribed(client, channel);
      await proxy.stall();
      // More than the kernel's buffers and the gateway's queue hold together; presence tells when it gave up. In few
      // pieces: it must do so before a ping is overdue, and stops to wait for the client 5 s later.
      const text = 'x'.repeat(240_000);
      let sent = 0;
      for (let present = 1; present > 0; sent += 5) {
        check(sent < 1_000, 'a reader that does not read is cut off');
        for (let n = 1; n <= 5; n += 1) await world.publish(channel, { n: sent + n, text });
        present = (await world.backend.api('presence_stats', { channel })).num_clients;
      }
      await proxy.flow();
      equal((await clientEvents.take('connecting', (ctx) => ctx.code !== 0)).code, 3008, 'code');
      await clientEvents.take('connected', (ctx) => ctx.client !== undefined);
      await events.take('subscribed');
      await world.publish(channel, { n: sent + 1 });
      let [last, number] = [0, 0];
      while (number < sent + 1) {
        const publication = await events.take('publication');
        check(publication.offset > last, `offset ${publication.offset} after ${last}`);
        const { n } = world.decode(publication.data);
        check(n > number, `${n} after ${number}`);
        [last, number] = [publication.offset, n];
      }
    },
  },
];
