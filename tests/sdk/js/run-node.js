// Runs every scenario with the SDK in Node: `node run-node.js json|protobuf [part of a scenario's name]`.

import { Centrifuge as JsonCentrifuge } from 'centrifuge';
import { Centrifuge as ProtobufCentrifuge } from 'centrifuge/build/protobuf';
import WebSocket from 'ws';

import { Backend, settings } from './backend.js';
import { runAll, World } from './kit.js';
import { scenarios } from './scenarios/index.js';

const [format, only = ''] = process.argv.slice(2);
if (!['json', 'protobuf'].includes(format)) throw new Error(`unknown format '${format}', expected json or protobuf`);

const setup = settings();
const backend = new Backend(setup);
const binary = format === 'protobuf';

const failed = await runAll(
  scenarios.filter((scenario) => scenario.name.includes(only)),
  (label) =>
    new World({
      Centrifuge: binary ? ProtobufCentrifuge : JsonCentrifuge,
      url: setup.ws,
      options: { websocket: WebSocket },
      binary,
      backend,
      label: `${format}-${label}`,
    }),
  console.log,
);
process.exit(failed === 0 ? 0 : 1);
