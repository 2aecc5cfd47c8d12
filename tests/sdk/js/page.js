// A page with the SDK, served on loopback: Chromium refuses loopback WebSockets from opaque origins.

import { readFile } from 'node:fs/promises';
import http from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.dirname(fileURLToPath(import.meta.url));
const PAGE = '<!doctype html><title>scenarios</title><script src="/node_modules/centrifuge/dist/centrifuge.js"></script>';

/** Serves the page, and the scripts of this directory for it to import. */
export async function servePage() {
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
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}
