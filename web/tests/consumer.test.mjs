// The packed tarball in an empty Vite project with TypeScript's strict checks: five lines, the right answer, in Vite's
// development server and in what it builds.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { build, createServer } from 'vite';
import { row } from '../demo/reference.js';
import { serve } from '../server.mjs';
import { browsers } from './browsers.mjs';

/** Relative; that of `flash demo`, for f32. */
const BOUND = 1e-5;
const web = fileURLToPath(new URL('..', import.meta.url));

describe('the tarball in a Vite project', { timeout: 300_000 }, () => {
  let folder;
  let browser;
  let files;
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'consumer-'));
    cpSync(`${web}tests/consumer`, folder, { recursive: true });
    const [packed] = JSON.parse(execFileSync('npm', ['pack', '--json', '--pack-destination', folder], { cwd: web, encoding: 'utf8' }));
    files = packed.files.map(({ path }) => path);
    execFileSync('npm', ['install', '--no-audit', '--no-fund', join(folder, packed.filename)], { cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] });
    browser = await browsers.chromium();
  });
  after(async () => {
    await browser?.close();
    if (folder) rmSync(folder, { recursive: true, force: true });
  });

  /** Opens the page and compares what it shows with f64. */
  async function rightAnswer(address) {
    const { page, complaints } = browser;
    await page.goto(address);
    await page.waitForFunction(() => document.querySelector('output').textContent !== '', null, { timeout: 60_000 })
      .catch((error) => assert.fail(`${error.message}\n${complaints.join('\n')}`));
    const { o, lse } = JSON.parse(await page.textContent('output'));
    const [q, k, v] = [0, 1, 2].map((phase) => Float32Array.from({ length: 8 * 128 * 64 }, (_, i) => Math.sin(0.37 * i + phase)));
    const problem = { shape: { numHeads: 8, seqlen: 128, headDim: 64 }, causal: true };
    const expected = row(problem, q, k, v, 0, 7, 127);
    const largest = Math.max(...expected.o.map(Math.abs));
    o.forEach((value, d) => assert(Math.abs(value - expected.o[d]) < BOUND * largest, `O[${d}] = ${value}, expected ${expected.o[d]}`));
    assert(Math.abs(lse - expected.lse) < BOUND * expected.lse, `LSE = ${lse}, expected ${expected.lse}`);
    assert.deepEqual(complaints, []);
  }

  test('it holds what users need, and nothing else', () => {
    const expected = ['LICENSE-APACHE', 'LICENSE-MIT', 'index.d.ts', 'index.js', 'wasm.js', 'wasm_bg.wasm'].map((file) => `pkg/${file}`);
    assert.deepEqual([...expected, 'README.md', 'package.json'].filter((file) => !files.includes(file)), []);
    const isNeeded = (file) => /^(README\.md|package\.json|pkg\/(LICENSE-(APACHE|MIT)|[a-z]+(\.d\.ts|\.js)|wasm_bg\.wasm))$/.test(file);
    assert.deepEqual(files.filter((file) => !isNeeded(file)), []);
  });

  test('TypeScript accepts the five lines', () => {
    execFileSync(process.execPath, [`${web}node_modules/typescript/bin/tsc`, '--project', folder], { stdio: 'inherit' });
  });

  test('in what Vite builds', async () => {
    await build({ root: folder, logLevel: 'warn', build: { target: 'es2022' } });
    const server = await serve(join(folder, 'dist'));
    await rightAnswer(`http://127.0.0.1:${server.address().port}/`);
    server.close();
  });

  test("in Vite's development server", async () => {
    const server = await createServer({ root: folder, logLevel: 'warn', server: { host: '127.0.0.1', port: 0 } });
    await server.listen();
    await rightAnswer(`http://127.0.0.1:${server.httpServer.address().port}/`);
    await server.close();
  });
});
