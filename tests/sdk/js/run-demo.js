// The demo page of `--dev` as a newcomer meets it: two tabs, a message by curl, a lost network.

import { Backend, settings } from './backend.js';
import { launch } from './browser.js';
import { check, DEADLINE_MS, equal, runAll } from './kit.js';

const setup = settings();
const backend = new Backend(setup);
const demo = new URL('/', setup.api);

/** A message in the chat; the list of frames has its text, too. */
const message = (page, text) => page.locator('#log .text').filter({ hasText: text });

const scenarios = [
  {
    name: 'two tabs chat, see each other and the server',
    async run({ tab }) {
      const [first, second] = [await tab(), await tab()];
      await first.fill('#text', 'hello from the first');
      await first.click('#send');
      for (const page of [first, second]) await message(page, 'hello from the first').waitFor();
      await second.waitForFunction(() => document.getElementById('people-count').textContent === '2');
      await backend.api('publish', { channel: 'chat:lobby', data: { text: 'hello from the server' } });
      for (const page of [first, second]) await message(page, 'hello from the server').waitFor();
      await first.close();
      await second.waitForFunction(() => document.getElementById('people-count').textContent === '1');
    },
  },
  {
    name: 'what was missed while the network was lost is recovered, in order',
    async run({ tab }) {
      const [first, second] = [await tab(), await tab()];
      // Long enough for a slow browser to send three messages.
      await first.selectOption('#away', '8');
      await first.click('#cut');
      for (const n of [1, 2, 3]) {
        await second.fill('#text', `missed ${n}`);
        await second.click('#send');
        await message(second, `missed ${n}`).waitFor();
      }
      const recovered = first.locator('#log .message').filter({ hasText: 'missed' });
      await recovered.nth(2).waitFor();
      const texts = await recovered.locator('.text').allTextContents();
      equal(texts, ['missed 1', 'missed 2', 'missed 3'], 'texts');
      equal(await recovered.locator('.tag.recovered').count(), 3, 'marked as recovered');
      check(await first.locator('#outcome').isVisible(), 'the page says how the recovery went');
    },
  },
  {
    name: 'text from the wire is never markup',
    async run({ tab }) {
      const page = await tab();
      const text = '<img src=x onerror="document.title=1"><b>bold</b>';
      await backend.api('publish', { channel: 'chat:lobby', data: { text, from: text } });
      await message(page, text).waitFor();
      equal(await page.locator('#log img, #log b').count(), 0, 'elements made of text');
    },
  },
];

const browser = await launch();
let failed;
try {
  failed = await runAll(
    scenarios,
    () => {
      const pages = [];
      return {
        async tab() {
          const page = await browser.newPage();
          pages.push(page);
          page.setDefaultTimeout(DEADLINE_MS);
          const problems = [];
          page.on('pageerror', (error) => problems.push(String(error)));
          page.on('request', (request) => {
            const { protocol, host } = new URL(request.url());
            if (protocol !== 'data:' && host !== demo.host) problems.push(`loads ${request.url()}`);
          });
          page.problems = problems;
          await page.goto(demo.href);
          await page.locator('#send:not([disabled])').waitFor();
          return page;
        },
        async close() {
          const problems = pages.flatMap((page) => page.problems);
          for (const page of pages) await page.close();
          equal(problems, [], 'errors and foreign requests of the page');
        },
      };
    },
    console.log,
  );
} finally {
  await browser.close();
}
process.exit(failed === 0 ? 0 : 1);
