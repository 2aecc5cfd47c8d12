// A small client of the Centrifuge protocol (JSON, version 2), written out by hand to show what goes over the wire.
// One connection, one channel. It knows nothing of the page. Applications should use one of the Centrifuge SDKs.

const COMMAND_TIMEOUT_MS = 5_000;
const PING_SLACK_MS = 10_000;
const BACKOFF_MIN_MS = 500;
const BACKOFF_MAX_MS = 20_000;

/** The delay before attempt `attempt` (counted from 0): exponential, with full jitter. */
export function backoff(attempt, random = Math.random()) {
  const bound = Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** Math.min(attempt, 31));
  return Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS + random * bound);
}

/** Whether a close code asks the client to stay away. Codes below 3000 are the transport's; of those only 1009 does. */
export function isTerminal(code) {
  return code === 1009 || (code >= 3500 && code < 4000) || (code >= 4500 && code < 5000);
}

/** An error reply, or one of the client's own (code 0). */
export class ReplyError extends Error {
  constructor({ code = 0, message = 'unknown error', temporary = false }) {
    super(message);
    this.code = code;
    this.temporary = temporary;
  }
}

/**
 * Events, as `client.on(name, callback)`:
 *
 * - `state` {state, code, reason, until}: `disconnected`, `connecting`, `connected`, `waiting` (for the next attempt)
 *   or `away` (the connection was cut on purpose); `until` is a time of `Date.now()`
 * - `frame` {direction, text}: one WebSocket frame, `in` or `out`
 * - `connected` {client, version, ping, pong}
 * - `subscribed` {result, before}: the reply to a subscribe command, and the position held until then
 * - `subscribe_failed` {error, retryAt}, `unsubscribed` {code, reason, final}
 * - `publication` {publication, recovered, at}, `join` {info}, `leave` {info}; `at` is when the frame was received, as
 *   `performance.now()` tells it
 * - `position` {epoch, offset}, `ping`, `pong`
 * - `abandoned_closed` {client, code, reason, after}: the gateway noticed a connection that was cut
 */
export class Client {
  #url;
  #channel;
  #listeners = new Map();
  #socket = null;
  #pending = new Map();
  #lastId = 0;
  #attempt = 0;
  #subscribeAttempt = 0;
  #timers = new Map();
  #abandoned = new Set();
  #ping = null;
  #receivedAt = 0;

  state = 'disconnected';
  client = null;
  subscribed = false;
  /** Where this client stands in the channel's stream; null before the first subscribe. */
  position = null;

  constructor(url, channel) {
    this.#url = url;
    this.#channel = channel;
  }

  on(name, callback) {
    this.#listeners.set(name, [...(this.#listeners.get(name) ?? []), callback]);
    return this;
  }

  /** Connects now, whatever it was waiting for. */
  connect() {
    if (this.#socket === null) this.#open();
  }

  /** Closes politely and stays away. */
  disconnect() {
    this.#stop(1000, 'client left');
    this.#setState('disconnected', { code: 1000, reason: 'closed here' });
  }

  /**
   * Cuts the connection as a lost network does: nothing is said, nothing is heard, no close frame goes out, and pings
   * stay unanswered. The gateway can only find out by the missing pong. Connects anew after `awayMs`.
   */
  cut(awayMs) {
    const socket = this.#detach();
    if (socket === null) return;
    const [client, since] = [this.client, Date.now()];
    // Kept in a set: a socket that is forgotten would be closed by the browser, with a close frame.
    this.#abandoned.add(socket);
    socket.onclose = ({ code, reason }) => {
      this.#abandoned.delete(socket);
      this.#emit('abandoned_closed', { client, code, reason, after: Date.now() - since });
    };
    this.#setState('away', { until: since + awayMs });
    this.#after('open', awayMs, () => this.#open());
  }

  /** Publishes each payload with a command of its own, all in one frame. */
  publish(...payloads) {
    return this.#send(payloads.map((data) => ({ publish: { channel: this.#channel, data } })));
  }

  /** Everyone who is subscribed now: a map from client id to info. */
  async presence() {
    const [reply] = await this.#send([{ presence: { channel: this.#channel } }]);
    return reply.presence.presence ?? {};
  }

  /** The newest publications, oldest first, and the position at which they were read. */
  async history(limit) {
    const [{ history }] = await this.#send([{ history: { channel: this.#channel, limit, reverse: true } }]);
    return { ...history, publications: (history.publications ?? []).reverse() };
  }

  /** Subscribes again after a final unsubscribe. */
  subscribe() {
    this.#clear('subscribe');
    if (this.state === 'connected') this.#commands([this.#subscribeCommand()]);
  }

  // --- the connection ---

  #open() {
    this.#stop(1000, 'starting anew');
    this.#setState('connecting');
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    this.#after('open', COMMAND_TIMEOUT_MS, () => this.#lost(0, 'no connection within 5 s'));
    socket.onopen = () => {
      this.#clear('open');
      this.#hello();
    };
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
  }

  /** The first frame carries connect and subscribe together; nobody waits for the first reply. */
  #hello() {
    const connect = {
      command: { connect: { name: 'demo', version: '1' } },
      done: ({ connect }) => this.#connectDone(connect),
      failed: (error) => this.#connectFailed(error),
    };
    this.#commands([connect, this.#subscribeCommand()]);
  }

  #connectDone(result) {
    this.#attempt = 0;
    this.#ping = result.ping ? { intervalMs: result.ping * 1_000, pong: result.pong === true } : null;
    this.client = result.client;
    this.#watch();
    this.#setState('connected');
    this.#emit('connected', result);
  }

  #connectFailed(error) {
    if (error.code === 0) return; // the connection itself was lost, which has been handled
    if (error.temporary) return this.#lost(error.code, error.message);
    this.#stop(1000, 'connect refused');
    this.#setState('disconnected', { code: error.code, reason: error.message });
  }

  /** The connection is gone: stay away for good, or try again later. */
  #lost(code, reason) {
    this.#stop(1000, 'client gives up');
    if (isTerminal(code)) return this.#setState('disconnected', { code, reason });
    const delay = backoff(this.#attempt++);
    this.#setState('waiting', { code, reason, until: Date.now() + delay });
    this.#after('open', delay, () => this.#open());
  }

  /** Lets go of the socket without a word. */
  #detach() {
    const socket = this.#socket;
    this.#socket = null;
    this.subscribed = false;
    for (const name of [...this.#timers.keys()]) this.#clear(name);
    if (socket !== null) socket.onopen = socket.onmessage = socket.onclose = null;
    const unanswered = [...this.#pending.values()];
    this.#pending.clear();
    for (const { failed } of unanswered) failed(new ReplyError({ message: 'connection closed' }));
    return socket;
  }

  #stop(code, reason) {
    this.#detach()?.close(code, reason);
  }

  #setState(state, detail = {}) {
    this.state = state;
    this.#emit('state', { state, ...detail });
  }

  /** The gateway announces how often it pings; any frame proves that it lives. */
  #watch() {
    if (this.#ping === null) return;
    this.#after('ping', this.#ping.intervalMs + PING_SLACK_MS, () => this.#lost(0, 'no ping from the gateway'));
  }

  // --- frames ---

  /**
   * Sends commands as one frame: JSON objects with a newline between them. `done` and `failed` are called while the
   * frame with the reply is read, before whatever follows in it: a subscribe reply sets the position that the very
   * next line may move.
   */
  #commands(commands) {
    const lines = commands.map(({ command, done, failed }) => {
      const id = ++this.#lastId;
      this.#pending.set(id, { done, failed });
      this.#after(`command ${id}`, COMMAND_TIMEOUT_MS, () => this.#lost(0, 'a command was not answered within 5 s'));
      return JSON.stringify({ ...command, id });
    });
    this.#transmit(lines.join('\n'));
  }

  async #send(commands) {
    if (this.state !== 'connected') throw new ReplyError({ message: 'not connected' });
    const requests = [];
    const replies = commands.map((command) => new Promise((done, failed) => requests.push({ command, done, failed })));
    this.#commands(requests);
    return Promise.all(replies);
  }

  #transmit(text) {
    this.#socket.send(text);
    this.#emit('frame', { direction: 'out', text });
  }

  #receive(text) {
    this.#receivedAt = performance.now();
    this.#emit('frame', { direction: 'in', text });
    this.#watch();
    for (const line of text.split('\n')) {
      if (line === '') continue;
      let reply;
      try {
        reply = JSON.parse(line);
      } catch {
        return this.#lost(0, 'a frame that is not JSON');
      }
      this.#dispatch(reply);
      if (this.#socket === null) return;
    }
  }

  #dispatch(reply) {
    if (reply.push) return this.#push(reply.push);
    if (!reply.id) return this.#pinged();
    const pending = this.#pending.get(reply.id);
    if (pending === undefined) return;
    this.#pending.delete(reply.id);
    this.#clear(`command ${reply.id}`);
    if (reply.error) pending.failed(new ReplyError(reply.error));
    else pending.done(reply);
  }

  /** An empty reply is a ping, and an empty command the pong. */
  #pinged() {
    this.#emit('ping');
    if (!this.#ping?.pong) return;
    this.#transmit('{}');
    this.#emit('pong');
  }

  #push({ channel, pub, join, leave, unsubscribe }) {
    if (channel !== this.#channel) return;
    if (pub) this.#publication(pub, false);
    else if (join) this.#emit('join', join);
    else if (leave) this.#emit('leave', leave);
    else if (unsubscribe) this.#unsubscribed(unsubscribe);
  }

  // --- the subscription ---

  #subscribeCommand() {
    const request = { channel: this.#channel, positioned: true, recoverable: true, join_leave: true };
    const since = this.position === null ? {} : { recover: true, ...this.position };
    return {
      command: { subscribe: { ...request, ...since } },
      done: ({ subscribe }) => this.#subscribeDone(subscribe),
      failed: (error) => this.#subscribeFailed(error),
    };
  }

  #subscribeDone(result) {
    this.#subscribeAttempt = 0;
    this.subscribed = true;
    const before = this.position;
    this.position = result.recoverable ? { epoch: result.epoch ?? '', offset: result.offset ?? 0 } : null;
    this.#emit('position', this.position);
    this.#emit('subscribed', { result, before });
    if (result.recovered) for (const publication of result.publications ?? []) this.#publication(publication, true);
  }

  #subscribeFailed(error) {
    if (error.code === 0 || this.state !== 'connected') return;
    const retries = error.temporary || error.code === 109;
    this.#emit('subscribe_failed', { error, retryAt: retries ? this.#resubscribeLater() : null });
  }

  #unsubscribed({ code = 0, reason = '' }) {
    this.subscribed = false;
    const final = code < 2500;
    if (code === 2502) this.position = null;
    this.#emit('unsubscribed', { code, reason, final });
    if (!final) this.#resubscribeLater();
  }

  #resubscribeLater() {
    const delay = backoff(this.#subscribeAttempt++);
    this.#after('subscribe', delay, () => this.subscribe());
    return Date.now() + delay;
  }

  #publication(publication, recovered) {
    if (publication.offset && this.position !== null) {
      this.position = { ...this.position, offset: publication.offset };
      this.#emit('position', this.position);
    }
    this.#emit('publication', { publication, recovered, at: this.#receivedAt });
  }

  // --- small things ---

  #after(name, delay, callback) {
    this.#clear(name);
    this.#timers.set(name, setTimeout(() => {
      this.#timers.delete(name);
      callback();
    }, delay));
  }

  #clear(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }

  #emit(name, detail) {
    for (const callback of this.#listeners.get(name) ?? []) callback(detail);
  }
}
