// The package in Node.js, on Dawn from npm's `webgpu` and Mesa's software driver: forward and backward against f64.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { softwareVulkan } from './browsers.mjs';

test('forward and backward on Dawn', { timeout: 300_000 }, () => {
  // Dawn reads the environment when it is loaded.
  const program = fileURLToPath(new URL('node.mjs', import.meta.url));
  const text = execFileSync(process.execPath, [program], { env: softwareVulkan, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  const { errors, words } = JSON.parse(text);
  for (const [tensor, error] of Object.entries(errors)) assert(error < 1e-5, `${tensor} errs by ${error}, relative to its largest entry`);
  assert.deepEqual(Object.keys(errors), ['o', 'lse', 'dq', 'dk', 'dv']);
  assert.match(words, /^NoWebGPUError no-webgpu Node.js has no WebGPU: install the npm package webgpu/);
});
