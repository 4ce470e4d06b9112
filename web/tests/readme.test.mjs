// Every example in JavaScript of the README is a program that runs: in Node.js, on Dawn and Mesa's software driver. That for esbuild
// and the page are run by consumer.test.mjs.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { softwareVulkan } from './browsers.mjs';
import { programs } from './readme.mjs';

const tests = fileURLToPath(new URL('.', import.meta.url));

/** What browsers have and Node.js has not. */
const LIKE_A_BROWSER = `
import { create as createGpu } from 'webgpu';
Object.defineProperty(globalThis, 'navigator', { value: { gpu: createGpu([]) } });
`;

describe('the examples of the README', { timeout: 900_000 }, () => {
  let folder;
  // Inside the package, where its own name means it.
  before(() => folder = mkdtempSync(join(tests, 'readme-')));
  after(() => rmSync(folder, { recursive: true }));

  test('there are examples', () => {
    assert(programs().length >= 13, `${programs().length} examples`);
  });
  for (const [index, { name, code, isOfNode, isOfEsbuild }] of programs().entries()) {
    if (isOfEsbuild) continue;
    test(name, () => {
      const file = join(folder, `${index}.mjs`);
      writeFileSync(file, isOfNode ? code : `${LIKE_A_BROWSER}${code}`);
      const { status, stdout, stderr } = spawnSync(process.execPath, [file], { env: softwareVulkan, encoding: 'utf8' });
      assert.equal(status, 0, stderr);
      assert.doesNotMatch(stdout, /NaN/);
    });
  }
});
