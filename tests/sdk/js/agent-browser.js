// The agent with the SDK in headless Chromium: commands as lines of JSON on standard input, answers and events on
// standard output.

import readline from 'node:readline';

import { launch } from './browser.js';
import { servePage } from './page.js';

const { url, close } = await servePage();
const browser = await launch();
const page = await browser.newPage();
page.on('pageerror', (error) => process.stderr.write(`page error: ${error.stack}\n`));
await page.exposeFunction('emitLine', (line) => process.stdout.write(`${line}\n`));
await page.goto(url);
await page.evaluate(async () => {
  const { Agent } = await import('/agent.js');
  const emit = (message) => globalThis.emitLine(JSON.stringify(message));
  globalThis.agent = new Agent({ Centrifuge: globalThis.Centrifuge, options: {}, emit });
});
// Not earlier: a line that comes before somebody listens is lost.
for await (const line of readline.createInterface({ input: process.stdin })) {
  // Not awaited: a command may last until a later one.
  void page.evaluate((command) => void globalThis.agent.handle(command), JSON.parse(line));
}
await browser.close();
close();
process.exit(0);
