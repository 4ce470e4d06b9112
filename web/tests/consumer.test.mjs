// The packed tarball as users have it: five lines with TypeScript's strict checks in a Vite project, the same five by other
// bundlers, as one file without any, in workers and under a strict Content-Security-Policy. The answer is right each time.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import * as esbuild from 'esbuild';
import { rolldown } from 'rolldown';
import { rollup } from 'rollup';
import { build, createServer } from 'vite';
import webpack from 'webpack';
import { row } from '../demo/reference.js';
import { serve } from '../server.mjs';
import { browsers } from './browsers.mjs';
import { blocks } from './readme.mjs';

/** Relative; that of `flash demo`, for f32. */
const BOUND = 1e-5;
const web = fileURLToPath(new URL('..', import.meta.url));

describe('the tarball', { timeout: 600_000 }, () => {
  let folder;
  let browser;
  let files;
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'consumer-'));
    cpSync(`${web}tests/consumer`, folder, { recursive: true });
    const [packed] = JSON.parse(execFileSync('npm', ['pack', '--json', '--pack-destination', folder], { cwd: web, encoding: 'utf8' }));
    files = packed.files.map(({ path }) => path);
    execFileSync('npm', ['install', '--no-audit', '--no-fund', join(folder, packed.filename)], { cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] });
    const { code } = await esbuild.transform(readFileSync(join(folder, 'src/main.ts'), 'utf8'), { loader: 'ts' });
    writeFileSync(join(folder, 'src/main.mjs'), code);
    browser = await browsers.chromium();
  });
  after(async () => {
    await browser?.close();
    if (folder) rmSync(folder, { recursive: true, force: true });
  });

  /** Opens the page and compares what it shows with f64. */
  async function rightAnswer(address) {
    const { page, complaints } = browser;
    complaints.length = 0;
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

  /** A page for a script of `name`, in a folder that is served. */
  async function served(name, use, policy = '') {
    const place = join(folder, name);
    mkdirSync(place, { recursive: true });
    const meta = policy && `<meta http-equiv="Content-Security-Policy" content="${policy}">`;
    writeFileSync(join(place, 'index.html'), `<!doctype html>${meta}<link rel="icon" href="data:,"><output></output><script type="module" src="main.js"></script>`);
    const server = await serve(place);
    try {
      await use(`http://127.0.0.1:${server.address().port}/`);
    } finally {
      server.close();
    }
  }

  test('it holds what users need, and nothing else', () => {
    const expected = ['LICENSE-APACHE', 'LICENSE-MIT', 'THIRD-PARTY.md', 'CHANGELOG.md', 'README.md', 'package.json',
      ...['index.d.ts', 'index.js', 'index.js.map', 'node.js', 'single.js', 'wasm.js', 'wasm_bg.wasm', 'wasm_bg.wasm.d.ts'].map((file) => `pkg/${file}`)];
    assert.deepEqual(expected.filter((file) => !files.includes(file)), []);
    const isNeeded = (file) => expected.includes(file) || /^pkg\/[a-z]+(\.d\.ts|\.js|\.js\.map)$/.test(file);
    assert.deepEqual(files.filter((file) => !isNeeded(file)), []);
  });

  test('no path of the machine that built it', () => {
    const module = readFileSync(join(folder, 'node_modules/wgpu-flash-attention/pkg/wasm_bg.wasm'), 'latin1');
    assert.deepEqual(module.match(/[ -~]*(\.cargo|registry\/src|\/(home|root|Users|work)\/)[ -~]*/g), null);
  });

  test('the README tells its size', () => {
    const [, told] = /(\d+) KiB of WebAssembly\s\(compressed\)/.exec(readFileSync(join(folder, 'node_modules/wgpu-flash-attention/README.md'), 'utf8'));
    const module = readFileSync(join(folder, 'node_modules/wgpu-flash-attention/pkg/wasm_bg.wasm'));
    const found = gzipSync(module, { level: 9 }).length / 1024;
    assert(Math.abs(found - told) <= 1, `${found} KiB compressed, the README tells of ${told}`);
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

  test('by webpack', () => served('webpack', async (address) => {
    const stats = await new Promise((resolve, reject) => webpack({
      mode: 'production', context: folder, entry: './src/main.mjs', experiments: { topLevelAwait: true },
      output: { path: join(folder, 'webpack'), filename: 'main.js' }, performance: { hints: false },
    }, (error, stats) => error ? reject(error) : resolve(stats)));
    assert(!stats.hasErrors() && !stats.hasWarnings(), stats.toString('errors-warnings'));
    await rightAnswer(address);
  }));

  test('by esbuild, which is told of .wasm', () => served('esbuild', async (address) => {
    // The README's lines take the place of the import and of create.
    const rest = readFileSync(join(folder, 'src/main.mjs'), 'utf8').split('\n').filter((line) => !/^import|FlashAttention\.create\(/.test(line));
    const { code } = blocks('js').find(({ code }) => code.includes('wasm_bg.wasm'));
    writeFileSync(join(folder, 'src/address.mjs'), `${code}\n${rest.join('\n')}`);
    await esbuild.build({
      entryPoints: [join(folder, 'src/address.mjs')], outfile: join(folder, 'esbuild/main.js'), bundle: true, format: 'esm', minify: true,
      loader: { '.wasm': 'file' }, logLevel: 'warning',
    });
    await rightAnswer(address);
  }));

  test('by rollup, with the module beside the bundle', () => served('rollup', async (address) => {
    const pkg = join(folder, 'node_modules/wgpu-flash-attention/pkg');
    const resolve = { name: 'resolve', resolveId: (name) => name === 'wgpu-flash-attention' ? `${pkg}/index.js` : null };
    const bundle = await rollup({ input: join(folder, 'src/main.mjs'), plugins: [resolve] });
    await bundle.write({ file: join(folder, 'rollup/main.js'), format: 'es' });
    cpSync(`${pkg}/wasm_bg.wasm`, join(folder, 'rollup/wasm_bg.wasm'));
    await rightAnswer(address);
  }));

  test('by rolldown, with the module beside the bundle', () => served('rolldown', async (address) => {
    const bundle = await rolldown({ input: join(folder, 'src/main.mjs'), cwd: folder, platform: 'browser' });
    await bundle.write({ file: join(folder, 'rolldown/main.js'), format: 'es' });
    cpSync(join(folder, 'node_modules/wgpu-flash-attention/pkg/wasm_bg.wasm'), join(folder, 'rolldown/wasm_bg.wasm'));
    await rightAnswer(address);
  }));

  test('as one file without a bundler, under a strict policy', () => served('single', async (address) => {
    cpSync(join(folder, 'node_modules/wgpu-flash-attention/pkg/single.js'), join(folder, 'single/single.js'));
    const code = readFileSync(join(folder, 'src/main.mjs'), 'utf8').replace(/(["'])wgpu-flash-attention\1/, "'./single.js'");
    writeFileSync(join(folder, 'single/main.js'), code);
    await rightAnswer(address);
  }, "default-src 'none'; img-src data:; script-src 'self' 'wasm-unsafe-eval'"));

  test("the README's page without a bundler", () => served('plain', async (address) => {
    cpSync(join(folder, 'node_modules/wgpu-flash-attention/pkg/single.js'), join(folder, 'plain/single.js'));
    writeFileSync(join(folder, 'plain/index.html'), blocks('html')[0].code);
    const { page } = browser;
    await page.goto(address);
    await page.waitForFunction(() => document.querySelector('output').textContent !== '', null, { timeout: 60_000 });
    assert.equal(await page.textContent('output'), Array(64).fill(1).join(' '));
  }));

  test('a policy without WebAssembly is explained', () => served('policy', async (address) => {
    cpSync(join(folder, 'node_modules/wgpu-flash-attention/pkg/single.js'), join(folder, 'policy/single.js'));
    writeFileSync(join(folder, 'policy/main.js'), `import { FlashAttention } from './single.js';
      FlashAttention.create().catch(({ name, code, message }) => document.querySelector('output').textContent = [name, code, message].join(' '));`);
    await browser.page.goto(address);
    await browser.page.waitForFunction(() => document.querySelector('output').textContent !== '', null, { timeout: 20_000 });
    assert.match(await browser.page.textContent('output'), /^AttentionError not-loaded .*add 'wasm-unsafe-eval' to script-src/);
  }, "default-src 'none'; img-src data:; script-src 'self'"));

  test('in workers of all kinds', () => served('workers', async (address) => {
    cpSync(join(folder, 'node_modules/wgpu-flash-attention/pkg'), join(folder, 'workers/pkg'), { recursive: true });
    writeFileSync(join(folder, 'workers/worker.js'), `import { FlashAttention } from './pkg/index.js';
      const answer = async () => {
        const attention = await FlashAttention.create();
        const q = new Float32Array(64).fill(1);
        const { o } = await attention.forward({ shape: { seqlen: 4, headDim: 16 }, q, k: q, v: q });
        attention.destroy();
        return o.every((value) => value === 1) ? 'right' : 'wrong ' + o;
      };
      const send = (port) => answer().catch(String).then((text) => port.postMessage(text));
      if ('onconnect' in self) self.onconnect = ({ ports }) => send(ports[0]);
      else if ('clients' in self) self.onmessage = (event) => event.waitUntil(send(event.source));
      else send(self);`);
    writeFileSync(join(folder, 'workers/main.js'), '');
    await browser.page.goto(address);
    const kinds = await browser.page.evaluate(async () => {
      const heard = (target) => new Promise((resolve, reject) => {
        target.addEventListener('message', ({ data }) => resolve(data), { once: true });
        target.addEventListener('error', ({ message }) => reject(new Error(message)), { once: true });
      });
      const dedicated = await heard(new Worker('worker.js', { type: 'module' }));
      const { port } = new SharedWorker('worker.js', { type: 'module' });
      port.start();
      const shared = await heard(port);
      await navigator.serviceWorker.register('worker.js', { type: 'module' });
      const { active } = await navigator.serviceWorker.ready;
      active.postMessage('begin');
      return { dedicated, shared, service: await heard(navigator.serviceWorker) };
    });
    assert.deepEqual(kinds, { dedicated: 'right', shared: 'right', service: 'right' });
  }));
});
