// The page: shows what the client tells. Everything that came over the wire is set as text, never as markup.

import { Client } from './client.js';
import { derivedName, hue, initials } from './names.js';

const DEFAULT_CHANNEL = 'chat:lobby';
const HISTORY_LEN = 50;
const LOG_LEN_MAX = 500;
const FRAMES_MAX = 200;
const LATENCIES_MAX = 40;
const BURST_LEN = 20;

const $ = (id) => document.getElementById(id);

const channel = new URLSearchParams(location.search).get('channel') || DEFAULT_CHANNEL;
const url = `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/connection/websocket`;
const client = new Client(url, channel);

/** Every client id this tab has had. */
const own = new Set();
/** Names that came with messages, by client id. */
const names = new Map();
/** Members of the channel, by client id. */
let people = new Map();
/** Join and leave events since a presence request was sent; null when none is under way. */
let changes = null;
/** When each own message was sent, by the mark it carries. */
const sent = new Map();
const latencies = [];
let firstSubscribe = true;
let lastPing = null;
let until = null;
let stateDetail = { state: 'disconnected' };

// --- names ---

const ownName = () => $('name').value.trim();

function nameOf(id) {
  if (own.has(id) && ownName() !== '') return ownName();
  return names.get(id) ?? derivedName(id);
}

// --- the chat log ---

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function avatar(name, kind) {
  const made = element('span', `avatar ${kind ?? ''}`, kind === 'server' ? '⌁' : initials(name));
  made.style.setProperty('--hue', hue(name));
  made.setAttribute('aria-hidden', 'true');
  return made;
}

const clock = (date = new Date()) => date.toLocaleTimeString([], { hour12: false });

/** Adds an entry to the log; a stored publication goes to its place in the stream. */
function addToLog(entry, { epoch, offset } = {}) {
  const log = $('log');
  let after = log.lastElementChild;
  if (offset) {
    entry.dataset.epoch = epoch;
    entry.dataset.offset = offset;
    if (seen(epoch, offset)) return;
    for (let at = after; at !== null; at = at.previousElementSibling) {
      if (at.dataset.offset === undefined) continue;
      if (at.dataset.epoch !== epoch || Number(at.dataset.offset) < offset) break;
      after = at.previousElementSibling;
    }
  }
  if (after === null) log.prepend(entry);
  else after.after(entry);
  group(entry);
  group(entry.nextElementSibling);
  while (log.childElementCount > LOG_LEN_MAX) log.firstElementChild.remove();
  if (!followsEnd && entry === log.lastElementChild) $('jump').hidden = false;
  scrollSoon();
}

/** The second message in a row of one sender needs no second name. */
function group(entry) {
  const sender = entry?.dataset.sender;
  entry?.classList.toggle('follows', sender !== undefined && entry.previousElementSibling?.dataset.sender === sender);
}

/** Whether the end of the log is in view and should stay so. */
let followsEnd = true;
let scrollDue = false;
let lastScrollTop = 0;

/** Scrolls once before the next paint, however many entries came: asking for sizes after each would cost a layout. */
function scrollSoon() {
  if (scrollDue || !followsEnd) return;
  scrollDue = true;
  requestAnimationFrame(() => {
    scrollDue = false;
    $('log').scrollTop = $('log').scrollHeight;
  });
}

function seen(epoch, offset) {
  return [...$('log').children].some((at) => at.dataset.epoch === epoch && at.dataset.offset === String(offset));
}

function note(text, kind = '') {
  const entry = element('li', `note ${kind}`);
  entry.append(element('span', '', text), element('time', '', clock()));
  addToLog(entry);
}

function textOf(data) {
  const isMessage = data !== null && typeof data === 'object' && typeof data.text === 'string';
  return isMessage ? { text: data.text } : { json: JSON.stringify(data) };
}

function showPublication(publication, { recovered = false, stored = false, at = 0 } = {}) {
  const { data, info, tags, offset } = publication;
  const from = typeof data?.from === 'string' ? data.from.trim().slice(0, 32) : '';
  if (info && from !== '' && !own.has(info.client)) learnName(info.client, from);
  const name = from || (info ? nameOf(info.client) : 'Backend');
  const mine = info !== undefined && own.has(info.client);

  const head = element('p', 'who');
  head.append(element('strong', '', name));
  if (mine) head.append(element('span', 'tag', 'you'));
  if (!info) head.append(element('span', 'tag server', 'server API'));
  if (recovered) head.append(element('span', 'tag recovered', 'recovered'));
  for (const [key, value] of Object.entries(tags ?? {})) head.append(element('span', 'tag', `${key}: ${value}`));

  const { text, json } = textOf(data);
  const body = json === undefined ? element('p', 'text', text) : element('code', 'text', json);

  const foot = element('p', 'meta');
  if (!stored && !recovered) foot.append(element('time', '', clock()));
  if (offset) foot.append(element('span', '', `offset ${offset}`));
  const took = mine ? roundTrip(data, at) : undefined;
  if (took !== undefined) foot.append(element('span', '', `${took.toFixed(1)} ms`));

  const entry = element('li', `message ${mine ? 'mine' : ''}`);
  const bubble = element('div', 'bubble');
  bubble.append(head, body, foot);
  entry.append(avatar(name, info ? '' : 'server'), bubble);
  entry.dataset.sender = `${info?.client ?? ''} ${name} ${recovered}`;
  addToLog(entry, { epoch: client.position?.epoch, offset });
}

/** Milliseconds from sending an own message to receiving it; only the first time that it comes back. */
function roundTrip(data, at) {
  const start = sent.get(data?.mark);
  if (start === undefined) return undefined;
  sent.delete(data.mark);
  const took = at - start;
  latencies.push(took);
  if (latencies.length > LATENCIES_MAX) latencies.shift();
  showLatency();
  return took;
}

function showLatency() {
  const sorted = [...latencies].sort((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)];
  $('fact-latency').textContent =
    `${latencies.at(-1).toFixed(1)} ms, median ${median.toFixed(1)} ms of ${latencies.length}`;
  const top = Math.max(...latencies, 1);
  const step = 120 / (LATENCIES_MAX - 1);
  const points = latencies.map((took, at) => `${(at * step).toFixed(1)},${(22 - (took / top) * 20).toFixed(1)}`);
  $('spark').firstElementChild.setAttribute('points', points.join(' '));
}

async function showHistory() {
  try {
    const { publications } = await client.history(HISTORY_LEN);
    for (const publication of publications) showPublication(publication, { stored: true });
  } catch (error) {
    if (error.code !== 0) note(`No history: ${error.message} (${error.code}).`, 'warn');
  }
}

// --- presence ---

async function readPresence() {
  changes = [];
  try {
    people = new Map(Object.entries(await client.presence()));
    for (const change of changes) change();
  } catch (error) {
    people = new Map();
    if (error.code !== 0) note(`No presence: ${error.message} (${error.code}).`, 'warn');
  }
  changes = null;
  showPeople();
}

/** Applies a join or leave; one that comes while presence is being read is applied again over what was read. */
function changePeople(change) {
  change();
  changes?.push(change);
  showPeople();
}

function learnName(id, name) {
  if (names.get(id) === name) return;
  names.set(id, name);
  if (people.has(id)) showPeople();
}

function showPeople() {
  const rank = (id) => (id === client.client ? 0 : own.has(id) ? 1 : 2);
  const ids = [...people.keys()].sort((a, b) => rank(a) - rank(b) || nameOf(a).localeCompare(nameOf(b)));
  $('people-count').textContent = client.subscribed ? ids.length : '–';
  $('nobody').hidden = client.subscribed;
  $('people').replaceChildren(...ids.map((id) => {
    const name = nameOf(id);
    const entry = element('li', own.has(id) && id !== client.client ? 'ghost' : '');
    const label = element('span', 'label', name);
    const detail = people.get(id).user ? `user ${people.get(id).user}` : id.slice(0, 8);
    entry.append(avatar(name), label, element('span', 'id', detail));
    if (id === client.client) entry.append(element('span', 'tag', 'you'));
    else if (own.has(id)) entry.append(element('span', 'tag', 'you, cut off'));
    return entry;
  }));
}

// --- the state of the connection ---

const CLOSE_TEXT = {
  0: '', 1000: 'closed', 1001: 'the gateway is going away', 1006: 'the connection broke or could not be made',
  1009: 'message too large',
};

function because({ code, reason }) {
  const text = reason || CLOSE_TEXT[code] || '';
  if (code === undefined) return '';
  return code === 0 ? text : `${text || 'closed'} (${code})`;
}

function showState() {
  const { state } = stateDetail;
  const seconds = until === null ? 0 : Math.max(0, Math.ceil((until - Date.now()) / 1000));
  const text = {
    disconnected: 'Disconnected',
    connecting: 'Connecting',
    connected: client.subscribed ? 'Live' : 'Connected, not subscribed',
    waiting: 'Trying again',
    away: 'Cut off',
  }[state];
  $('state').dataset.state = state === 'connected' && !client.subscribed ? 'connecting' : state;
  // Set only when it differs, as a screen reader reads it out; the seconds are for the eye only.
  $('state-count').textContent = until === null ? '' : `${state === 'away' ? '· back in' : 'in'} ${seconds} s`;
  if ($('state-text').textContent !== text) $('state-text').textContent = text;
  $('send').disabled = $('burst').disabled = state !== 'connected';
  $('cut').disabled = state !== 'connected' || !client.subscribed;
  // After an unsubscribe for good the same button subscribes again.
  const canSubscribe = state === 'connected' && !client.subscribed;
  $('connect').textContent = canSubscribe ? 'Subscribe' : 'Connect now';
  $('connect').disabled = client.subscribed || state === 'connecting';
  $('disconnect').disabled = state === 'disconnected';
}

let awayFrom = null;

function tick() {
  showState();
  if (stateDetail.state === 'away') $('away-progress').value = (Date.now() - awayFrom) / (until - awayFrom);
  if (lastPing !== null) {
    const ago = Math.round((Date.now() - lastPing.at) / 1000);
    $('fact-ping').textContent = `every ${lastPing.interval} s${lastPing.seen ? `, answered ${ago} s ago` : ''}`;
  }
}
setInterval(tick, 250);

function showOutcome(text, kind) {
  $('outcome').hidden = text === '';
  $('outcome').className = `outcome ${kind}`;
  $('outcome').textContent = text;
}

client.on('state', (detail) => {
  stateDetail = detail;
  until = detail.until ?? null;
  $('away-progress').hidden = detail.state !== 'away';
  if (detail.state === 'away') {
    awayFrom = Date.now();
    showOutcome('', '');
    note('Connection cut. Nothing was said to the gateway.', 'warn');
  } else if (detail.state === 'waiting') {
    const delay = ((until - Date.now()) / 1000).toFixed(1);
    note(`Disconnected: ${because(detail)}. Next attempt in ${delay} s.`, 'warn');
  } else if (detail.state === 'disconnected') {
    note(`Disconnected: ${because(detail)}.${detail.code === 1000 ? '' : ' No further attempts.'}`, 'warn');
  }
  if (detail.state !== 'connected') {
    people = new Map();
    lastPing = null;
    for (const id of ['fact-ping', 'fact-gateway', 'fact-client']) $(id).textContent = '–';
    showPeople();
  }
  tick();
});

client.on('connected', ({ client: id, version, ping }) => {
  own.add(id);
  $('fact-client').textContent = id;
  $('fact-gateway').textContent = version ?? '–';
  lastPing = ping ? { interval: ping, at: Date.now(), seen: false } : null;
  if (!lastPing) $('fact-ping').textContent = 'off';
  $('name').placeholder = derivedName(id);
});

client.on('ping', () => {
  if (lastPing !== null) Object.assign(lastPing, { at: Date.now(), seen: true });
});

const messages = (count) => (count === 1 ? '1 message' : `${count} messages`);

client.on('subscribed', ({ result, before }) => {
  if (result.recovered) {
    const missed = (result.publications ?? []).length;
    const text = missed === 0 ? 'Recovered: nothing was missed.' : `Recovered ${messages(missed)}.`;
    showOutcome(text, 'good');
    note(text, 'good');
  } else if (result.was_recovering) {
    const why = before?.epoch === result.epoch ? 'the history no longer has all of it' : 'the stream is a new one';
    const text = `Not recovered: ${why}. What is still there follows.`;
    showOutcome(text, 'bad');
    note(text, 'bad');
  }
  // What was said before this tab came stands above the note that it is here.
  const shown = result.recovered ? Promise.resolve() : showHistory();
  if (firstSubscribe) shown.then(() => note(`You are in ${channel}.`));
  firstSubscribe = false;
  readPresence();
  showState();
});

client.on('subscribe_failed', ({ error, retryAt }) => {
  const next = retryAt === null ? 'No further attempts.' : `Next attempt in ${((retryAt - Date.now()) / 1000).toFixed(1)} s.`;
  note(`Not subscribed: ${error.message} (${error.code}). ${next}`, 'bad');
  showState();
});

client.on('unsubscribed', ({ code, reason, final }) => {
  note(`Unsubscribed by the gateway: ${reason} (${code}). ${final ? 'For good.' : 'Subscribing again.'}`, 'warn');
  people = new Map();
  showPeople();
  showState();
});

client.on('publication', ({ publication, recovered, at }) => showPublication(publication, { recovered, at }));

client.on('position', (position) => {
  $('fact-epoch').textContent = position?.epoch || '–';
  $('fact-offset').textContent = position?.offset ?? '–';
});

client.on('join', ({ info }) => {
  changePeople(() => people.set(info.client, info));
  if (!own.has(info.client)) note(`${nameOf(info.client)} joined.`);
});

client.on('leave', ({ info }) => {
  changePeople(() => people.delete(info.client));
  if (!own.has(info.client)) note(`${nameOf(info.client)} left.`);
});

client.on('abandoned_closed', ({ code, reason, after }) => {
  note(`The gateway gave up your cut connection after ${Math.round(after / 1000)} s: ${because({ code, reason })}.`);
});

// --- frames ---

let frameCount = 0;

function sizeOf(text) {
  const bytes = new TextEncoder().encode(text).length;
  return bytes < 1024 ? `${bytes} B` : `${(bytes / 1024).toFixed(1)} KiB`;
}

/** What a message is: the name of its payload, or of the payload of its push. */
function kindOf(line, direction) {
  let message;
  try {
    message = JSON.parse(line);
  } catch {
    return 'not JSON';
  }
  const keys = Object.keys(message).filter((key) => key !== 'id');
  if (keys.length === 0) return direction === 'in' ? 'ping' : 'pong';
  if (keys[0] !== 'push') return keys[0];
  return Object.keys(message.push).find((key) => key !== 'channel') ?? 'push';
}

client.on('frame', ({ direction, text }) => {
  $('frame-count').textContent = ++frameCount;
  if ($('pause').checked) return;
  const lines = text.split('\n').filter((line) => line !== '');
  const kinds = lines.map((line) => kindOf(line, direction));
  const heartbeat = kinds.every((kind) => kind === 'ping' || kind === 'pong');
  const entry = element('li', `${direction} ${heartbeat ? 'heartbeat' : ''}`);
  const head = element('p', 'frame-head');
  const arrow = element('span', 'arrow', direction === 'in' ? '↓ in' : '↑ out');
  const count = lines.length === 1 ? '' : `${lines.length} messages, `;
  head.append(arrow, element('time', '', clock()), element('span', '', `${count}${sizeOf(text)}`));
  for (const kind of new Set(kinds)) head.append(element('span', 'tag', kind));
  const body = element('pre', '', lines.join('\n'));
  entry.append(head, body);
  const list = $('frame-list');
  list.prepend(entry);
  while (list.childElementCount > FRAMES_MAX) list.lastElementChild.remove();
});

// --- what one can press ---

async function publish(texts) {
  $('problem').textContent = '';
  const payloads = texts.map((text) => {
    const mark = crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
    sent.set(mark, performance.now());
    const from = ownName();
    return from === '' ? { text, mark } : { from, text, mark };
  });
  try {
    await client.publish(...payloads);
    return true;
  } catch (error) {
    for (const { mark } of payloads) sent.delete(mark);
    $('problem').textContent = `Not sent: ${error.message}${error.code ? ` (${error.code})` : ''}`;
    return false;
  }
}

$('composer').addEventListener('submit', async (event) => {
  event.preventDefault();
  const text = $('text').value.trim();
  if (text === '' || $('send').disabled) return;
  $('text').value = '';
  if (!(await publish([text])) && $('text').value === '') $('text').value = text;
});

$('burst').addEventListener('click', () => {
  publish(Array.from({ length: BURST_LEN }, (_, at) => `message ${at + 1} of ${BURST_LEN} in one frame`));
});

$('cut').addEventListener('click', () => client.cut(Number($('away').value) * 1000));
$('connect').addEventListener('click', () => (client.state === 'connected' ? client.subscribe() : client.connect()));
$('disconnect').addEventListener('click', () => client.disconnect());
$('clear').addEventListener('click', () => $('frame-list').replaceChildren());
$('hide-pings').addEventListener('change', () => {
  $('frame-list').classList.toggle('without-heartbeat', $('hide-pings').checked);
});
$('jump').addEventListener('click', () => {
  followsEnd = true;
  scrollSoon();
});
$('log').addEventListener('scroll', () => {
  const log = $('log');
  const nearEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  // Away from the end without having moved up: entries came, nobody scrolled.
  if (nearEnd) followsEnd = true;
  else if (log.scrollTop < lastScrollTop) followsEnd = false;
  lastScrollTop = log.scrollTop;
  if (followsEnd) $('jump').hidden = true;
});

// One name per tab: session storage is not shared between tabs.
$('name').value = sessionStorage.getItem('name') ?? '';
$('name').addEventListener('input', () => {
  sessionStorage.setItem('name', ownName());
  showPeople();
});

// The browser knows the network is back before the timer does.
addEventListener('online', () => {
  if (client.state === 'waiting') client.connect();
});

$('channel').value = channel;
$('chat-title').textContent = channel;
$('second').href = location.pathname + location.search;
document.title = `${channel} · Evenkeel demo`;
$('hide-pings').dispatchEvent(new Event('change'));
if (matchMedia('(pointer: fine)').matches) $('text').focus();
client.connect();
