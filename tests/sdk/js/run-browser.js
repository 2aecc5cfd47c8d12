// Runs every scenario with the JSON SDK in headless Chromium, from a page served on loopback:
// `node run-browser.js [part of a scenario's name]`.

import { readFile } from 'node:fs/promises';
import http from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { Backend, settings } from './backend.js';
import { launch } from './browser.js';

const root = path.dirname(fileURLToPath(import.meta.url));
const PAGE = '<!doctype html><title>scenarios</title><script src="/node_modules/centrifuge/dist/centrifuge.js"></script>';

// Chromium refuses loopback WebSockets from opaque origins, so the page comes from a server of its own.
const server = http.createServer(async (request, response) => {
  if (request.url === '/') {
    response.setHeader('Content-Type', 'text/html').end(PAGE);
    return;
  }
  const file = path.join(root, path.normalize(request.url));
  if (!file.startsWith(root) || !file.endsWith('.js')) {
    response.writeHead(404).end();
    return;
  }
  try {
    const text = await readFile(file);
    response.setHeader('Content-Type', 'text/javascript').end(text);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));

const setup = settings();
const backend = new Backend(setup);
const only = process.argv[2] ?? '';

const browser = await launch();

let failed = 1;
try {
  const page = await browser.newPage();
  page.on('pageerror', (error) => console.log(`# page error: ${error.stack}`));
  await page.exposeFunction('print', (line) => console.log(line));
  await page.exposeFunction('backendCall', (method, parameters) => backend[method](...parameters));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  failed = await page.evaluate(
    async ({ url, only }) => {
      const { runAll, World } = await import('/kit.js');
      const { scenarios } = await import('/scenarios/index.js');
      // The page's server API calls and tokens come from Node, as they would from an application's backend.
      const backend = new Proxy({}, {
        get: (_target, method) => (...parameters) => globalThis.backendCall(method, parameters),
      });
      return runAll(
        scenarios.filter((scenario) => scenario.name.includes(only)),
        (label) =>
          new World({
            Centrifuge: globalThis.Centrifuge,
            url,
            options: {},
            binary: false,
            backend,
            label: `browser-${label}`,
          }),
        globalThis.print,
      );
    },
    { url: setup.ws, only },
  );
} finally {
  await browser.close();
  server.close();
}
process.exit(failed === 0 ? 0 : 1);
