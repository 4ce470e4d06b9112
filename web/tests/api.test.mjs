// The package's API in both browsers: the cases of cases.js, one after the other in one page.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { serve } from '../server.mjs';
import { browsers } from './browsers.mjs';

const NAMES = [
  'the reference is right', 'answers in f32', 'answers in f16', 'answers in bf16', "the caller's strides",
  'answers without subgroups and shader-f16', "the browser's features are used", 'nothing to see, nothing to do, NaN',
  'the same bits, however the work is split', 'calls at the same time', 'dropout seeds', 'tensors on the GPU',
  "the caller's device and buffers", 'nothing of the page is changed', 'every misuse has its own error', 'misuse before there is a device',
  'abort means now',
  'the page stays alive', 'a lost device', 'what the browser refuses', 'destroy at any moment', 'mount and unmount', 'a panic is told', 'prepared operations',
  'calls go together', 'no WebGPU', '16-bit elements', 'gradients',
  'the reference of modifiers is right', 'biases', 'masks', 'softcap and ALiBi', 'sinks', 'lengths of sequences',
  'packed sequences', 'caches and appends',
  'all modifiers at once', 'gradients of biases', 'probabilities', "scores by the caller's WGSL", "masks by the caller's WGSL",
  "faults of the caller's WGSL", 'block masks', 'plans',
];

// Firefox compiles with naga and runs on wgpu, as the crate's own tests do, on the driver that they use. What these cases compare is
// compared there, for every kind of problem; so they are left to Chromium, whose Tint and Dawn nothing else tests as much.
const CHROMIUM_ALONE = new Set([
  'answers in f16', 'answers in bf16', 'answers without subgroups and shader-f16', 'nothing to see, nothing to do, NaN',
  'the same bits, however the work is split', 'packed sequences', 'caches and appends', 'all modifiers at once', 'gradients of biases',
  'sinks', 'lengths of sequences', "masks by the caller's WGSL", "the caller's strides", 'block masks', '16-bit elements',
  'softcap and ALiBi', 'dropout seeds', 'probabilities',
]);

for (const [name, open] of Object.entries(browsers)) {
  describe(name, { timeout: 900_000 }, () => {
    let server;
    let browser;
    before(async () => {
      // The repository's root: the cases read the bundled data of the crate's examples.
      server = await serve(fileURLToPath(new URL('../..', import.meta.url)));
      browser = await open();
      await browser.page.goto(`http://127.0.0.1:${server.address().port}/web/tests/blank.html`);
    });
    after(async () => {
      await browser?.close();
      server?.close();
    });

    test('no case is left out', async () => {
      const found = await browser.page.evaluate(async () => Object.keys((await import('/web/tests/cases.js')).cases));
      assert.deepEqual(found, NAMES);
    });
    for (const own of NAMES.filter((own) => name === 'chromium' || !CHROMIUM_ALONE.has(own))) {
      test(own, async () => {
        const failure = await browser.page.evaluate(async (name) => {
          const { cases } = await import('/web/tests/cases.js');
          return cases[name]().then(() => undefined, (error) => `${error?.name}: ${error?.message}\n${error?.stack}`);
        }, own);
        assert.equal(failure, undefined);
        // Firefox tells the console what its compiler refuses, whoever asks for it.
        if (own === "faults of the caller's WGSL") browser.complaints.length = 0;
      });
    }
    test('the console stays empty', () => {
      assert.deepEqual(browser.complaints, []);
    });
  });
}
