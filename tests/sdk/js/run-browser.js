// Runs every scenario with the JSON SDK in headless Chromium, from a page served on loopback:
// `node run-browser.js [part of a scenario's name]`.

import { Backend, settings } from './backend.js';
import { launch } from './browser.js';
import { servePage } from './page.js';

const { url: pageUrl, close } = await servePage();
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
  await page.goto(pageUrl);
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
  close();
}
process.exit(failed === 0 ? 0 : 1);
