// Every example in JavaScript of the README is a program whose names are right, and that runs: in Node.js, on Dawn and
// Mesa's software driver, which compiles for minutes. So the first one runs, and with README_EXAMPLES=all each of them. That for
// esbuild and the page are run by consumer.test.mjs.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
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

  test('their names are right', () => {
    const files = programs().filter(({ isOfEsbuild }) => !isOfEsbuild).map(({ code }, index) => {
      const file = join(folder, `types${index}.mjs`);
      writeFileSync(file, code);
      return file;
    });
    const compiler = join(tests, '../node_modules/typescript/bin/tsc');
    const options = ['--ignoreConfig', '--noEmit', '--strict', 'false', '--allowJs', '--checkJs', '--target', 'esnext', '--module', 'nodenext',
      '--skipLibCheck', '--types', '@webgpu/types,node'];
    try {
      execFileSync(process.execPath, [compiler, ...options, ...files], { encoding: 'utf8', cwd: join(tests, '..') });
    } catch (error) {
      // JavaScript takes `element: 'f16'` in an object of its own for any text, which fits no option's type.
      const others = error.stdout.split('\n').filter((line) => /error TS/.test(line) && !/error TS(2322|2769)/.test(line));
      assert.deepEqual(others, [], error.stdout);
      assert.match(error.stdout, /error TS/);
    }
  });

  const runsAll = process.env.README_EXAMPLES === 'all';
  for (const [index, { name, code, isOfNode, isOfEsbuild }] of programs().entries()) {
    if (isOfEsbuild || !(runsAll || index === 0)) continue;
    test(name, () => {
      const file = join(folder, `${index}.mjs`);
      writeFileSync(file, isOfNode ? code : `${LIKE_A_BROWSER}${code}`);
      const { status, stdout, stderr } = spawnSync(process.execPath, [file], { env: softwareVulkan, encoding: 'utf8' });
      assert.equal(status, 0, stderr);
      assert.doesNotMatch(stdout, /NaN/);
    });
  }
});
