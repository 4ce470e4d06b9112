// The demo page, driven as a person would, in both browsers. Screenshots of its states are kept in target/screenshots.
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { serve } from '../server.mjs';
import { browsers } from './browsers.mjs';

const screenshots = fileURLToPath(new URL('../../target/screenshots', import.meta.url));
mkdirSync(screenshots, { recursive: true });

const axe = readFileSync(fileURLToPath(new URL('../node_modules/axe-core/axe.min.js', import.meta.url)), 'utf8');

/** What axe-core finds that is serious or worse. */
async function barriers(page) {
  await page.evaluate(axe);
  return page.evaluate(async () => {
    const { violations } = await globalThis.axe.run(document, { resultTypes: ['violations'] });
    return violations.filter(({ impact }) => impact === 'serious' || impact === 'critical')
      .map(({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target.join(' ')).join(', ')}`);
  });
}

/** Pairs of labels of the plot that lie on each other; runs in the page. */
function crossing() {
  // Boxes have room around the letters, in Firefox that of the stroke too.
  const all = [...document.querySelectorAll('#growth text')].map((text) => {
    const { left, right, top, bottom, height } = text.getBoundingClientRect();
    return { text: text.textContent, box: { left: left + 3, right: right - 3, top: top + 0.2 * height, bottom: bottom - 0.2 * height } };
  });
  const isApart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
  return all.flatMap((one, index) => all.slice(index + 1).filter((other) => !isApart(one.box, other.box)).map((other) => `${one.text} / ${other.text}`));
}

/** Waits in the page until a condition holds; `argument` is what it is told. */
async function until(page, condition, argument, what) {
  for (let tries = 0; tries < 2400; tries++) {
    if (await page.evaluate(condition, argument)) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`after 4 minutes still not: ${what}`);
}

async function fill(page, name, value) {
  await page.evaluate(() => document.querySelector('#more').open = true);
  await page.focus(`#controls [name="${name}"]`);
  await page.evaluate((name) => document.querySelector(`#controls [name="${name}"]`).select?.(), name);
  await page.keyboard.type(String(value));
}

async function press(page, selector) {
  await page.focus(selector);
  await page.keyboard.press('Enter');
}

/** Presses Run and waits for the end of the race. */
async function runRace(page) {
  await press(page, '#run');
  await until(page, () => document.querySelector('#stop').disabled && document.querySelector('#run').getAttribute('aria-disabled') === 'false', null, 'the race is over');
  return page.evaluate(() => {
    const cells = (algorithm) => [...document.querySelectorAll(`[data-algorithm="${algorithm}"] td`)].map((cell) => cell.textContent);
    return {
      status: document.querySelector('#status').textContent,
      problem: document.querySelector('#problem').hidden ? '' : document.querySelector('#problem').textContent,
      verdict: document.querySelector('#verdict').textContent,
      winner: document.querySelector('#winner').hidden ? '' : document.querySelector('#winner').textContent,
      what: document.querySelector('#what').textContent,
      estimate: document.querySelector('#estimate').textContent,
      focus: document.activeElement.id,
      flash: cells('flash'),
      standard: cells('standard'),
      javascript: cells('javascript'),
      bars: document.querySelectorAll('#results .bar').length,
    };
  });
}

for (const [name, open] of Object.entries(browsers)) {
  describe(`the page in ${name}`, { timeout: 900_000 }, () => {
    let server;
    let browser;
    let page;
    let address;
    before(async () => {
      server = await serve(fileURLToPath(new URL('..', import.meta.url)));
      address = `http://127.0.0.1:${server.address().port}/`;
      browser = await open();
      page = browser.page;
      await page.goto(address);
      await until(page, () => document.querySelector('#heat').dataset.head === '1', null, 'the heat map is drawn');
    });
    after(async () => {
      await browser?.close();
      server?.close();
    });

    /** In every size and colour nothing is wider than the window, and axe-core finds nothing serious; what is seen is kept. */
    async function checkState(state, shown = page, show = browser.show, widths = [400, 1280]) {
      for (const width of widths) {
        for (const colorScheme of name === 'chromium' ? ['light', 'dark'] : ['light']) {
          await show({ width, colorScheme });
          await shown.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
          const what = `${state}, ${width} pixels, ${colorScheme}`;
          await shown.screenshot({ path: `${screenshots}/${name}-${state}-${width}-${colorScheme}.png`, fullPage: true });
          if (name === 'chromium') assert.deepEqual(await barriers(shown), [], what);
          assert.deepEqual(await shown.evaluate(crossing), [], what);
          assert.equal(await shown.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth), 0, what);
        }
      }
      await show({ width: 1280 });
    }

    test('before anything is run', () => checkState('ready'));

    test('it tells what it runs on', async () => {
      await press(page, '#gpu-name');
      const text = await page.evaluate(() => document.querySelector('#gpu').innerText);
      assert.match(text, /Largest binding\s+\d+ [MG]iB/);
      assert.match(text, name === 'chromium' ? /swiftshader[^]*Subgroups\s+of 4/ : /f16 in shaders\s+yes/);
    });

    test('N = 1024, 4 heads, d = 64, causal is right', async () => {
      // The values that the page comes with.
      const race = await runRace(page);
      assert.equal(race.problem, '');
      assert.equal(race.status, 'Done.');
      assert.match(race.verdict, /^Right: flash errs by .*; allowed are twice standard attention's .* and 10⁻⁶ of the largest number, together/);
      assert.match(race.winner, /(flash|standard attention) is [\d.]+ times faster|As fast as each other/);
      assert.match(race.winner, /1\/1025 of the memory/);
      assert.equal(race.what, 'N = 1024, 4 heads, d = 64, f32, causal');
      assert.equal(race.focus, 'run');
      assert.match(race.flash[0], name === 'chromium' ? /\d (ms|s) .*FLOP\/s; .* on the GPU, .* there and back/ : /\d (ms|s) .*FLOP\/s; /);
      assert.equal(race.flash[1], '16 KiB');
      assert.match(race.flash[3], /flash_forward/);
      assert.equal(race.standard[1], '16 MiB');
      assert.match(race.standard[3], /standard_scores, standard_softmax, standard_output/);
      assert.match(race.javascript[0], /estimated from 24 rows/);
      assert.equal(race.bars, 5);
    });

    test('presets and the slider', async () => {
      await press(page, '[data-seqlen="4096"]');
      const shown = () => page.evaluate(() => [document.querySelector('#length').value, document.querySelector('[name="seqlen"]').value, document.querySelector('#slider').value]);
      assert.deepEqual(await shown(), ['4096', '4096', '12']);
      await until(page, () => /^flash: about .*, \S+ [KMG]iB of memory; standard: about .*, \S+ [KMG]iB of memory/.test(document.querySelector('#estimate').textContent), null, 'an estimate');
      await page.focus('#slider');
      await page.keyboard.press('ArrowLeft');
      assert.deepEqual(await shown(), ['2048', '2048', '11']);
      await until(page, () => document.querySelectorAll('#growth polyline').length === 2, null, 'the plot is drawn');
    });

    test('f16, dropout and odd sizes by keyboard', async () => {
      await fill(page, 'seqlen', 100);
      await fill(page, 'heads', 2);
      await fill(page, 'headDim', 40);
      await fill(page, 'dropout', 0.25);
      await page.focus('#controls [name="element"]');
      await page.keyboard.type('f16');
      await page.focus('#controls [name="causal"]');
      await page.keyboard.press(' ');
      assert.deepEqual(await page.evaluate(() => Object.fromEntries(new FormData(document.querySelector('#controls')))),
        { seqlen: '100', heads: '2', headDim: '40', element: 'f16', dropout: '0.25' });
      const race = await runRace(page);
      assert.equal(race.problem, '');
      assert.match(race.verdict, /^Right/);
    });

    test('an error is gone when the next race is right', async () => {
      await page.evaluate(() => {
        const { attention } = globalThis;
        attention.forward = () => Promise.reject(new RangeError('of the test'));
      });
      const failed = await runRace(page);
      assert.deepEqual([failed.problem, failed.status, failed.verdict, failed.winner], ['RangeError: of the test', 'It could not be computed: see above.', '', '']);
      await page.evaluate(() => delete globalThis.attention.forward);
      const race = await runRace(page);
      assert.deepEqual([race.problem, race.status], ['', 'Done.']);
      assert.match(race.verdict, /^Right/);
    });

    test('a problem that is too large is explained', async () => {
      await fill(page, 'seqlen', 65536);
      await fill(page, 'heads', 64);
      await fill(page, 'headDim', 256);
      const race = await runRace(page);
      assert.match(race.problem, /^UnsupportedError: .* is too large for this device.*\.Choose a shorter text, fewer heads or a smaller d\.$/);
      if (name === 'chromium') await until(page, () => document.querySelector('#growth-caption').textContent.endsWith('Beyond N = 32768 Q, K and V themselves are more than this GPU can bind.'), null, 'why the lines end');
      assert.match(race.status, /see above/);
      await checkState('too-large');
    });

    test('stop stops', async () => {
      await fill(page, 'seqlen', 4096);
      await fill(page, 'heads', 4);
      await fill(page, 'headDim', 64);
      await fill(page, 'dropout', 0);
      await press(page, '#run');
      await until(page, () => document.querySelector('#progress').value > 0, null, 'there is progress');
      await checkState('running');
      await press(page, '#stop');
      await until(page, () => document.querySelector('#status').textContent === 'Stopped.', null, 'it stopped');
      await checkState('stopped');
      assert.equal(await page.evaluate(() => document.querySelector('#progress').value), 0, 'nothing goes on');
      await fill(page, 'seqlen', 1024);
      await fill(page, 'heads', 4);
    });

    test('the heat map answers to keys', async () => {
      await page.focus('#heat-controls [name="head"]');
      await page.keyboard.press('ArrowRight');
      await until(page, () => document.querySelector('#heat').dataset.head === '2', null, 'head 2 is drawn');
      await page.focus('#heat');
      await page.keyboard.press('ArrowDown');
      assert.match(await page.evaluate(() => document.querySelector('#heat-cell').textContent), /^Token 42, “io”, takes \d.* % from token 21, “presentation”\.$/);
      assert.match(await page.evaluate(() => document.querySelector('#strongest').innerText), /^“\S+” \(token \d+\): \d.* %(\s+“\S+” \(token \d+\): \d.* %){4}$/);
      // Not all of one colour.
      const colours = await page.evaluate(() => new Set(document.querySelector('#heat').getContext('2d').getImageData(200, 200, 1280, 1280).data).size);
      assert(colours > 20, `${colours} values of colour`);
      await page.evaluate(() => globalThis.attention.forward = () => Promise.reject(new RangeError('of the test')));
      await page.focus('#heat-controls [name="head"]');
      await page.keyboard.press('ArrowRight');
      const cell = (text) => until(page, (text) => document.querySelector('#heat-cell').textContent.startsWith(text), text, text);
      await cell('The map of this head could not be computed. RangeError: of the test');
      await page.evaluate(() => delete globalThis.attention.forward);
      await page.keyboard.press('ArrowLeft');
      await cell('Token 42, “io”, takes');
    });

    test('the tiles walk', async () => {
      const caption = () => page.evaluate(() => document.querySelector('#tiles-caption').textContent);
      await press(page, '#step');
      const before = await caption();
      await press(page, '#step');
      assert.notEqual(await caption(), before);
      await page.focus('#tile-controls [name="at"]');
      await page.keyboard.press('End');
      assert.match(await caption(), /Step (\d+) of \1: tile 4 of Q has seen every tile/);
      // α below 1: what was summed shrinks, then grows.
      const shrinking = await page.evaluate(() => {
        const at = document.querySelector('#tile-controls [name="at"]');
        for (let step = 0; step <= Number(at.max); step++) {
          at.value = String(step);
          at.dispatchEvent(new Event('input'));
          const [, l] = /What was summed before shrinks by α = 0\.\d+: l = ([\d.]+)/.exec(document.querySelector('#tiles-caption').textContent) ?? [];
          if (l) return l;
        }
        return null;
      });
      assert.match(shrinking ?? '', /^\d/);
      await page.keyboard.press('Home');
    });

    test('methods beside exact attention', async () => {
      await press(page, '#compare-run');
      await until(page, () => /comes closest/.test(document.querySelector('#compare-caption').textContent), null, 'they are compared');
      const rows = () => page.evaluate(() => [...document.querySelectorAll('#compare tbody tr')].map((row) => [...row.querySelectorAll('td')].map((cell) => cell.textContent)));
      const before = await rows();
      assert.match(before[0][0], /^\d.*·10⁻[⁶⁷]$/);
      assert.equal(before[0][1], '100 %');
      for (const [error, work, memory] of before.slice(1)) assert(/^[\d.]+ %$/.test(error) && /^[\d.]+ %$/.test(work) && /^\d.* [KM]iB$/.test(memory), `${error}, ${work}, ${memory}`);
      // What is masked by the package errs as it does in plain loops.
      const inLoops = await page.evaluate(async () => {
        const [{ exact, longformer, relativeError }, { fromF16 }] = await Promise.all([import('/demo/methods.js'), import('/pkg/index.js')]);
        const all = fromF16(new Uint16Array(await (await fetch('/demo/minilm512.bin')).arrayBuffer()));
        const errors = [0, 1, 2, 3].map((head) => {
          const [q, k, v] = [0, 1, 2].map((tensor) => all.subarray((tensor * 4 + head) * 512 * 32, (tensor * 4 + head + 1) * 512 * 32));
          return [exact({ q, k, v, n: 512, d: 32 }, longformer(32, 16)), exact({ q, k, v, n: 512, d: 32 })];
        });
        return `${Number((100 * relativeError(errors)).toPrecision(2))} %`;
      });
      assert.equal(before[1][0], inLoops);
      await page.focus('#compare-controls [name="budget"]');
      await page.keyboard.press('ArrowRight');
      await until(page, () => document.querySelector('#compare-caption').textContent.startsWith('With 128 keys'), null, 'more keys');
      assert.notDeepEqual(await rows(), before);
      // One that fails shows no numbers of another, and is forgotten when the next is right.
      await page.evaluate(() => globalThis.attention.forward = () => Promise.reject(new RangeError('of the test')));
      await press(page, '#compare-run');
      await until(page, () => document.querySelector('#compare-caption').textContent === 'It could not be computed. RangeError: of the test', null, 'it tells');
      assert.equal(await page.evaluate(() => document.querySelector('#compare').hidden), true);
      await page.evaluate(() => delete globalThis.attention.forward);
      await press(page, '#compare-run');
      await until(page, () => document.querySelector('#compare-caption').textContent.startsWith('With 128 keys'), null, 'it is right again');
      assert.equal(await page.evaluate(() => document.querySelector('#compare').hidden), false);
    });

    test('after a race', async () => {
      const again = await runRace(page);
      assert.match(again.verdict, /^Right/);
      assert.equal(again.problem, '', 'what an earlier race complained about');
      await checkState('done', page, browser.show, [280, 400, 1280]);
    });

    test('the console stayed empty', () => {
      assert.deepEqual(browser.complaints, []);
    });

    test('a lost device is explained', async () => {
      await page.evaluate(() => globalThis.attention.device.destroy());
      await until(page, () => document.querySelector('#problem').textContent.startsWith('DeviceLostError: the GPU device was lost'), null, 'the page tells');
      const race = await runRace(page);
      assert.match(race.problem, /^DeviceLostError: the GPU device was lost \(.*\)\.Start again$/);
      await checkState('lost');
    });

    test('a browser without WebGPU is explained', async () => {
      const hide = () => Object.defineProperty(Navigator.prototype, 'gpu', { configurable: true, value: undefined });
      if (page.addInitScript) await page.addInitScript(hide);
      else await page.evaluateOnNewDocument(hide);
      await page.goto(address);
      await until(page, () => document.querySelector('#problem').textContent.startsWith('NoWebGPUError: this browser has no WebGPU'), null, 'the page tells');
      assert.equal(await page.evaluate(() => document.querySelector('#run').getAttribute('aria-disabled')), 'true');
      await checkState('no-webgpu');
      assert.deepEqual(browser.complaints, []);
    });

    if (name === 'chromium') {
      test('labels of the plot stay apart', async () => {
        // Bytes of standard attention and of flash from N = 256 on, as far as they go.
        const cases = {
          'both reach the end, close to each other': [[18, 20, 22, 24, 26, 27, 27, 27, 27], [12, 13, 14, 15, 16, 17, 18, 19, 26]],
          'both end early': [[22, 24, 26, 26, 26], [16, 17, 18, 19, 20]],
          'both end soon': [[22, 23], [19, 20]],
          'on one line': [[22, 24, 26, 28, 30, 31, 31], [22, 24, 26, 28, 30, 31, 31]],
        };
        for (const [what, [standard, flash]] of Object.entries(cases)) {
          for (const width of [400, 1280]) {
            await browser.show({ width });
            await page.evaluate(async ([standard, flash]) => {
              const { growth } = await import('/demo/growth.js');
              class UnsupportedError extends Error {}
              const plan = async ({ algorithm, shape: { seqlen } }) => {
                const power = (algorithm === 'standard' ? standard : flash)[Math.log2(seqlen) - 8];
                if (power === undefined) throw new UnsupportedError();
                return { extraBytes: 2 ** power };
              };
              await growth({ plan }, { UnsupportedError })({ shape: { seqlen: 4096 } });
            }, [standard, flash]);
            await page.locator('#growth').screenshot({ path: `${screenshots}/plot-${what.replaceAll(/\W+/g, '-')}-${width}.png` });
            assert.deepEqual(await page.evaluate(crossing), [], `${what}, ${width} pixels`);
          }
        }
      });

      test('without the map the race goes on', async () => {
        const context = await page.context().browser().newContext();
        const other = await context.newPage();
        await other.route('**/minilm.bin', (route) => route.fulfill({ status: 404 }));
        await other.goto(address);
        await until(other, () => document.querySelector('#heat-cell').textContent.startsWith('The map could not be drawn. Error: minilm.bin did not load: the server answered 404'), null, 'the page tells');
        const shown = await other.evaluate(() => ['#status', '#gpu-name', '#compare-caption'].map((id) => document.querySelector(id).textContent));
        assert.equal(shown[0], 'Press Run.');
        assert.match(shown[1], /swiftshader/i);
        assert.equal(shown[2], '');
        assert.equal(await other.evaluate(() => document.querySelector('#problem').hidden), true);
        assert.deepEqual(await barriers(other), []);
        await context.close();
      });

      test('the search tells what is missing, and forgets it', async () => {
        const context = await page.context().browser().newContext();
        const other = await context.newPage();
        await other.goto(`${address}examples/minilm/`);
        assert.deepEqual(await barriers(other), []);
        await press(other, '#go');
        await until(other, () => document.querySelector('#problem').textContent === 'Error: choose both files, model.safetensors and tokenizer.json', null, 'it tells');
        assert.deepEqual(await barriers(other), []);
        await other.setInputFiles('#files', ['model.safetensors', 'tokenizer.json'].map((name) => ({ name, mimeType: 'application/octet-stream', buffer: Buffer.from('no model') })));
        assert.equal(await other.evaluate(() => document.querySelector('#problem').hidden), true);
        await press(other, '#go');
        await until(other, () => !document.querySelector('#problem').hidden, null, 'it tells of the model');
        await context.close();
      });

      test('a package that is not built is explained', async () => {
        await page.route('**/pkg/**', (route) => route.abort());
        await page.goto(address);
        await until(page, () => /^PackageMissing: the package is not built, .* run `make web`/.test(document.querySelector('#problem').textContent), null, 'the page tells');
        const shown = await page.evaluate(() => ['#estimate', '#heat-cell', '#compare-caption', '#gpu-name'].map((id) => document.querySelector(id).textContent));
        assert.deepEqual(shown, ['How fast it is cannot be told without the package.', 'The map needs the package.', 'The comparison needs the package.', 'not asked']);
        await checkState('no-package');
        await page.unroute('**/pkg/**');
      });

      test('without JavaScript the page says so', async () => {
        const context = await page.context().browser().newContext({ javaScriptEnabled: false });
        const silent = await context.newPage();
        await silent.goto(address);
        assert.match(await silent.locator('header noscript').innerText(), /This page needs JavaScript/);
        // axe-core would need JavaScript too.
        for (const width of [400, 1280]) {
          for (const colorScheme of ['light', 'dark']) {
            await silent.setViewportSize({ width, height: 900 });
            await silent.emulateMedia({ colorScheme });
            await silent.screenshot({ path: `${screenshots}/chromium-no-javascript-${width}-${colorScheme}.png`, fullPage: true });
          }
        }
        await context.close();
      });
    }
  });
}
