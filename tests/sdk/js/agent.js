// SDK clients that are commanded and observed from outside; the same in Node and in a page.

const CLIENT_EVENTS = [
  'connecting', 'connected', 'disconnected', 'error',
  'subscribing', 'subscribed', 'unsubscribed', 'publication', 'join', 'leave',
];
const SUBSCRIPTION_EVENTS = [
  'subscribing', 'subscribed', 'unsubscribed', 'publication', 'join', 'leave', 'error',
];

/** Carries out commands `{call, op, ...}`; every one is answered by `{call, result}` or `{call, error}`. */
export class Agent {
  #clients = new Map();
  #publishers = new Map();
  #Centrifuge;
  #options;
  #emit;

  constructor({ Centrifuge, options, emit }) {
    this.#Centrifuge = Centrifuge;
    this.#options = options;
    this.#emit = emit;
  }

  async handle({ call, op, ...parameters }) {
    try {
      const run = OPERATIONS[op];
      if (!run) throw new Error(`unknown operation '${op}'`);
      this.#emit({ call, result: (await run(this, parameters)) ?? {} });
    } catch (error) {
      this.#emit({ call, error: { code: error?.code ?? -1, message: String(error?.message ?? error) } });
    }
  }

  connect({ client: name, url, token, options = {} }) {
    const client = new this.#Centrifuge(url, {
      minReconnectDelay: 20,
      maxReconnectDelay: 200,
      ...this.#options,
      ...(token ? { token } : {}),
      ...options,
    });
    // Events of server-side subscriptions name their channel.
    for (const event of CLIENT_EVENTS) {
      client.on(event, (context) => this.#emit({ client: name, channel: context.channel ?? '', event, context }));
    }
    this.#clients.set(name, client);
    client.connect();
  }

  client(name) {
    const client = this.#clients.get(name);
    if (!client) throw new Error(`no client '${name}'`);
    return client;
  }

  subscribe({ client: name, channel, options = {} }) {
    const client = this.client(name);
    const sub = client.newSubscription(channel, { minResubscribeDelay: 20, maxResubscribeDelay: 200, ...options });
    for (const event of SUBSCRIPTION_EVENTS) {
      sub.on(event, (context) => this.#emit({ client: name, channel, event, context }));
    }
    sub.subscribe();
  }

  subscription({ client, channel }) {
    return this.client(client).getSubscription(channel);
  }

  /** Publishes numbered messages, one after another, with a pause between an answer and the next. */
  startPublishing({ client, channel, publisher, pause }) {
    const sub = this.subscription({ client, channel });
    const attempts = [];
    let stopped = false;
    const running = (async () => {
      for (let n = 1; !stopped; n += 1) {
        const began = performance.now();
        let code = 0;
        try {
          await sub.publish({ p: publisher, n });
        } catch (error) {
          code = error?.code ?? -1;
        }
        attempts.push({ n, code, took: performance.now() - began });
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    })();
    this.#publishers.set(publisher, async () => {
      stopped = true;
      await running;
      return attempts;
    });
  }

  stopPublishing({ publisher }) {
    return this.#publishers.get(publisher)();
  }
}

/** What a test can ask for. */
const OPERATIONS = {
  hello: () => {},
  connect: (agent, parameters) => agent.connect(parameters),
  disconnect: (agent, { client }) => agent.client(client).disconnect(),
  reconnect: (agent, { client }) => agent.client(client).connect(),
  subscribe: (agent, parameters) => agent.subscribe(parameters),
  unsubscribe: (agent, parameters) => agent.subscription(parameters).unsubscribe(),
  rpc: (agent, { client, method, data }) => agent.client(client).rpc(method, data),
  publish: (agent, { data, ...parameters }) => agent.subscription(parameters).publish(data),
  history: (agent, { options, ...parameters }) => agent.subscription(parameters).history(options),
  presence: (agent, parameters) => agent.subscription(parameters).presence(),
  presenceStats: (agent, parameters) => agent.subscription(parameters).presenceStats(),
  startPublishing: (agent, parameters) => agent.startPublishing(parameters),
  stopPublishing: (agent, parameters) => agent.stopPublishing(parameters),
};
