// What every scenario needs and what runs alike in Node and in a page: events with a deadline, and checks.

/** No event of a healthy gateway on a busy two-core machine takes longer. */
export const DEADLINE_MS = 20_000;

/** Seconds that a token is valid which is to be refreshed: it must not be over before it has arrived. */
export const SHORT_TTL = 3;

export class Failure extends Error {}

export function check(condition, message) {
  if (!condition) throw new Failure(message);
}

// Key order carries no meaning in JSON, so both sides are compared with sorted keys.
function canonical(value) {
  return JSON.stringify(value, (_key, inner) =>
    inner && typeof inner === 'object' && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}

export function equal(actual, expected, what) {
  const [left, right] = [canonical(actual), canonical(expected)];
  check(left === right, `${what}: got ${left}, expected ${right}`);
}

/** Fails with `what` unless `promise` settles before the deadline. */
export function within(promise, what, limit = DEADLINE_MS) {
  let timer;
  const expired = new Promise((_resolve, reject) => {
    timer = setTimeout(() => reject(new Failure(`nothing within ${limit} ms: ${what}`)), limit);
  });
  return Promise.race([promise, expired]).finally(() => clearTimeout(timer));
}

/** The promise must be rejected; its error is returned. */
export async function rejected(promise, what) {
  try {
    await within(promise, what);
  } catch (error) {
    if (error instanceof Failure) throw error;
    return error;
  }
  throw new Failure(`${what}: succeeded, expected an error`);
}

/** Every event of an SDK object, kept until a scenario takes it. */
export class Events {
  #seen = [];
  #waiting = [];

  constructor(emitter, names) {
    for (const name of names) emitter.on(name, (ctx) => this.#push({ name, ctx }));
  }

  #push(event) {
    const index = this.#waiting.findIndex((waiter) => waiter.wants(event));
    if (index < 0) this.#seen.push(event);
    else this.#waiting.splice(index, 1)[0].resolve(event.ctx);
  }

  /** The context of the first event of this name (and match) that was not taken yet. */
  take(name, match = () => true) {
    const wants = (event) => event.name === name && match(event.ctx);
    const index = this.#seen.findIndex(wants);
    if (index >= 0) return Promise.resolve(this.#seen.splice(index, 1)[0].ctx);
    return within(new Promise((resolve) => this.#waiting.push({ wants, resolve })), `event '${name}'`);
  }

  /** Fails when an event of one of these names came and was not taken. */
  none(...names) {
    const event = this.#seen.find((one) => names.includes(one.name));
    check(!event, `unexpected event ${event?.name}: ${JSON.stringify(event?.ctx)}`);
  }
}

/** Something to count up to: `await counter.reaches(3)`. */
export class Counter {
  #value = 0;
  #waiting = [];

  add() {
    this.#value += 1;
    this.#waiting = this.#waiting.filter((waiter) => {
      if (this.#value < waiter.target) return true;
      waiter.resolve();
      return false;
    });
    return this.#value;
  }

  reaches(target, what) {
    if (this.#value >= target) return Promise.resolve();
    return within(new Promise((resolve) => this.#waiting.push({ target, resolve })), `${what} (${target} times)`);
  }
}

/** What one scenario works with: clients that are closed at its end, names of its own, the backend. */
export class World {
  #clients = [];
  #proxies = [];

  constructor({ Centrifuge, url, options, binary, backend, label }) {
    Object.assign(this, { Centrifuge, url, options, binary, backend, label });
  }

  user(name) {
    return `${name}-${this.label}`;
  }

  channel(namespace, name = 'main') {
    return `${namespace}:${name}-${this.label}`;
  }

  /** Payloads are bytes for the Protobuf SDK and values for the JSON one. */
  encode(value) {
    return this.binary ? new TextEncoder().encode(JSON.stringify(value)) : value;
  }

  decode(data) {
    return this.binary ? JSON.parse(new TextDecoder().decode(data)) : data;
  }

  /** A client of this user with its events. `getToken: true` makes fresh tokens on demand. */
  async client({ user = this.user('ann'), claims = {}, url = this.url, ...options } = {}) {
    const token = options.token ?? (await this.backend.connectionToken({ sub: user, ...claims }));
    const client = new this.Centrifuge(url, {
      minReconnectDelay: 20,
      maxReconnectDelay: 200,
      ...this.options,
      ...options,
      token,
    });
    const events = new Events(client, [
      'connecting', 'connected', 'disconnected', 'error', 'message',
      'subscribing', 'subscribed', 'unsubscribed', 'publication', 'join', 'leave',
    ]);
    this.#clients.push(client);
    return { client, events };
  }

  /** The same, already connected. */
  async connected(options) {
    const { client, events } = await this.client(options);
    client.connect();
    const hello = await events.take('connected');
    return { client, events, id: hello.client };
  }

  subscription(client, channel, options = {}) {
    const sub = client.newSubscription(channel, { minResubscribeDelay: 20, maxResubscribeDelay: 200, ...options });
    const events = new Events(sub, [
      'subscribing', 'subscribed', 'unsubscribed', 'publication', 'join', 'leave', 'error',
    ]);
    return { sub, events };
  }

  async subscribed(client, channel, options) {
    const { sub, events } = this.subscription(client, channel, options);
    sub.subscribe();
    const context = await events.take('subscribed');
    return { sub, events, context };
  }

  /** A TCP proxy before the gateway: `cut`, `restore`, `stall`, `flow`. */
  async proxy() {
    const proxy = await this.backend.openProxy();
    this.#proxies.push(proxy.id);
    return {
      url: proxy.url,
      cut: () => this.backend.proxy(proxy.id, 'cut'),
      restore: () => this.backend.proxy(proxy.id, 'restore'),
      stall: () => this.backend.proxy(proxy.id, 'stall'),
      flow: () => this.backend.proxy(proxy.id, 'flow'),
    };
  }

  publish(channel, data, more = {}) {
    return this.backend.api('publish', { channel, data, ...more });
  }

  async close() {
    for (const client of this.#clients) client.disconnect();
    for (const id of this.#proxies) await this.backend.proxy(id, 'close');
  }
}

/** Runs the scenarios in order and reports each as a TAP line; returns how many failed. */
export async function runAll(scenarios, makeWorld, print) {
  print('TAP version 13');
  print(`1..${scenarios.length}`);
  let failed = scenarios.length === 0 ? 1 : 0;
  for (const [index, scenario] of scenarios.entries()) {
    const world = makeWorld(`${index + 1}`);
    try {
      try {
        // A scenario waits for several events in a row, each with its own deadline; this one bounds them all.
        await within(scenario.run(world), scenario.name, 4 * DEADLINE_MS);
      } finally {
        await world.close();
      }
      print(`ok ${index + 1} - ${scenario.name}`);
    } catch (error) {
      failed += 1;
      print(`not ok ${index + 1} - ${scenario.name}`);
      print(`# ${String(error?.stack ?? JSON.stringify(error)).replaceAll('\n', '\n# ')}`);
    }
  }
  return failed;
}
