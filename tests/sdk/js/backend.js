// The application's side, in Node: server API calls, token signing, and a TCP proxy that can fail on purpose.

import { createHmac } from 'node:crypto';
import net from 'node:net';

const REQUIRED = ['EVENKEEL_TEST_WS', 'EVENKEEL_TEST_API', 'EVENKEEL_API_KEY', 'EVENKEEL_TOKEN_HMAC_SECRET'];

export function settings() {
  for (const name of REQUIRED) {
    if (!process.env[name]) throw new Error(`${name} is not set: these scripts are started by the tests crate`);
  }
  const [ws, api, key, secret] = REQUIRED.map((name) => process.env[name]);
  return { ws, api, key, secret };
}

function sign(claims, secret) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const body = `${part({ alg: 'HS256', typ: 'JWT' })}.${part(claims)}`;
  return `${body}.${createHmac('sha256', secret).update(body).digest('base64url')}`;
}

/** Forwards bytes to the gateway until told to cut, refuse or stall. */
class Proxy {
  #pairs = new Set();
  #cut = false;
  #server;
  #target;

  constructor(target) {
    this.#target = target;
    this.#server = net.createServer((near) => this.#accept(near));
  }

  listen() {
    return new Promise((resolve) => this.#server.listen(0, '127.0.0.1', () => resolve(this.#server.address().port)));
  }

  #accept(near) {
    if (this.#cut) {
      near.destroy();
      return;
    }
    const far = net.connect(this.#target);
    const pair = { near, far };
    this.#pairs.add(pair);
    near.pipe(far);
    far.pipe(near);
    for (const socket of [near, far]) {
      socket.on('error', () => {});
      socket.on('close', () => this.#drop(pair));
    }
  }

  #drop(pair) {
    this.#pairs.delete(pair);
    pair.near.destroy();
    pair.far.destroy();
  }

  /** Ends every connection without a close frame and refuses new ones. */
  cut() {
    this.#cut = true;
    for (const pair of [...this.#pairs]) this.#drop(pair);
  }

  restore() {
    this.#cut = false;
  }

  /** Stops reading from the gateway, as a client whose network has stopped does. */
  stall() {
    for (const { near, far } of this.#pairs) {
      far.unpipe(near);
      far.pause();
    }
  }

  flow() {
    for (const { near, far } of this.#pairs) far.pipe(near);
  }

  close() {
    this.cut();
    this.#server.close();
  }
}

export class Backend {
  #settings;
  #proxies = [];

  constructor(settings) {
    this.#settings = settings;
  }

  /** Calls the server API and returns its result. */
  async api(method, body) {
    const response = await fetch(`${this.#settings.api}/${method}`, {
      method: 'POST',
      headers: { 'X-API-Key': this.#settings.key, 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
    });
    const text = await response.text();
    if (response.status !== 200) throw new Error(`API ${method}: HTTP ${response.status} ${text}`);
    const answer = JSON.parse(text);
    if (answer.error) throw new Error(`API ${method}: ${JSON.stringify(answer.error)}`);
    return answer.result;
  }

  /** `ttl` (seconds, may be negative) becomes `exp`; the other claims are taken as they are. */
  connectionToken({ ttl = 600, ...claims }) {
    return sign({ exp: Math.floor(Date.now() / 1000) + ttl, ...claims }, this.#settings.secret);
  }

  subscriptionToken({ ttl = 600, ...claims }) {
    return this.connectionToken({ ttl, ...claims });
  }

  async openProxy() {
    const gateway = new URL(this.#settings.ws);
    const proxy = new Proxy({ host: gateway.hostname, port: Number(gateway.port) });
    const port = await proxy.listen();
    this.#proxies.push(proxy);
    gateway.port = port;
    return { id: this.#proxies.length - 1, url: gateway.href };
  }

  proxy(id, action) {
    this.#proxies[id][action]();
  }
}
