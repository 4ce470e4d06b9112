// The package in Node.js, on Dawn from npm's `webgpu` and Mesa's software driver: forward and backward against f64.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { softwareVulkan } from './browsers.mjs';

/** What a program prints. Dawn reads the environment when it is loaded. */
function answerOf(file) {
  const program = fileURLToPath(new URL(file, import.meta.url));
  return JSON.parse(execFileSync(process.execPath, [program], { env: softwareVulkan, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }));
}

test('forward and backward on Dawn', { timeout: 300_000 }, () => {
  const { errors, words, withoutDriver, isSame } = answerOf('node.mjs');
  assert(isSame, 'arrays in shared memory give something else');
  for (const [tensor, error] of Object.entries(errors)) assert(error < 1e-5, `${tensor} errs by ${error}, relative to its largest entry`);
  assert.deepEqual(Object.keys(errors), ['o', 'lse', 'dq', 'dk', 'dv']);
  assert.match(words, /^NoWebGPUError no-webgpu Node.js has no WebGPU: install the npm package webgpu/);
  assert.match(withoutDriver, /^WebGPU found no usable GPU: install or update its driver/);
});

test("the example's sentences on Dawn", { timeout: 300_000 }, () => {
  const { error, length, tokens } = answerOf('minilm.mjs');
  assert.equal(length, 3 * 64);
  assert(error < 1e-5, `vectors err by ${error}, relative to the largest entry`);
  assert.deepEqual(tokens, ['[CLS]', 'flash', '##att', '##ention', '!', 'cafe', '-', '日', '[UNK]', '[SEP]']);
});
