// The agent with the SDK in Node: commands as lines of JSON on standard input, answers and events on standard output.

import readline from 'node:readline';

import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';

import { Agent } from './agent.js';

const emit = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const agent = new Agent({ Centrifuge, options: { websocket: WebSocket }, emit });
const lines = readline.createInterface({ input: process.stdin });
lines.on('line', (line) => agent.handle(JSON.parse(line)));
lines.on('close', () => process.exit(0));
