// Headless Chromium as the scenarios use it.

import { chromium } from 'playwright-core';

/** Starts the browser that the machine has. */
export function launch() {
  return chromium.launch({
    executablePath: process.env.EVENKEEL_TEST_CHROMIUM ?? '/usr/bin/chromium',
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--disable-dev-shm-usage',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  });
}
