// Flash and standard attention on the same tensors, and a plain JavaScript check of a sample of rows.
import { OutOfMemoryError, UnsupportedError, fromBf16, fromF16, toBf16, toF16 } from '../pkg/index.js';
import { largestError, row as referenceRow } from './reference.js';
import { bytes, duration, rate, scientific } from './text.js';

const CODECS = { f32: [(values) => values, (values) => values], f16: [toF16, fromF16], bf16: [toBf16, fromBf16] };
/** Rows that JavaScript computes too. */
const SAMPLE = 24;
/** Runs of one algorithm, or as many as fit the time. */
const RUNS = 7;
const RUNS_MS = 1500;

/** Numbers that look normally distributed; the same at every visit. */
function random(length, seed) {
  let state = seed;
  const uniform = () => {
    state = Math.imul(state ^ state >>> 15, 0x2c1b3c6d) + 0x9e3779b9 >>> 0;
    return (state >>> 8) / 2 ** 24;
  };
  return Float32Array.from({ length }, () => 1.7 * (uniform() + uniform() + uniform() + uniform() - 2));
}

const breath = () => new Promise((resolve) => setTimeout(resolve));

function cells(algorithm) {
  return document.querySelector(`#results [data-algorithm="${algorithm}"]`).querySelectorAll('td');
}

function show(cell, text, detail = '') {
  const small = document.createElement('small');
  small.textContent = detail;
  cell.replaceChildren(text, ...detail ? [' ', small] : []);
}

/** Bars below the numbers of a column, the longest as wide as the cell. */
function bars(column, values) {
  const longest = Math.max(...Object.values(values));
  for (const [algorithm, value] of Object.entries(values)) {
    const bar = document.createElement('div');
    bar.className = 'bar';
    bar.style.width = `${100 * value / longest}%`;
    cells(algorithm)[column].append(bar);
  }
}

export function race(attention, { complain, complainNoMore }) {
  const form = document.querySelector('#controls');
  const [run, stop, progress, status, verdict] = ['#run', '#stop', '#progress', '#status', '#verdict'].map((id) => document.querySelector(id));
  let controller;

  stop.addEventListener('click', () => controller?.abort());
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    controller = new AbortController();
    complainNoMore();
    verdict.textContent = '';
    for (const cell of document.querySelectorAll('#results td')) cell.replaceChildren();
    [run.disabled, stop.disabled] = [true, false];
    try {
      await compete(readForm());
      status.textContent = 'Done.';
    } catch (error) {
      status.textContent = error?.name === 'AbortError' ? 'Stopped.' : 'It could not be computed: see above.';
      if (error?.name !== 'AbortError') complain(error);
    } finally {
      progress.value = 0;
      [run.disabled, stop.disabled] = [false, true];
    }
  });
  run.disabled = false;

  function readForm() {
    const fields = new FormData(form);
    const number = (name) => Number(fields.get(name));
    const p = number('dropout');
    return {
      shape: { numHeads: number('heads'), seqlen: number('seqlen'), headDim: number('headDim') },
      element: fields.get('element'),
      causal: fields.has('causal'),
      ...p > 0 ? { dropout: { p, seed: 42 } } : {},
    };
  }

  async function compete(problem) {
    const { signal } = controller;
    const { numHeads, seqlen, headDim } = problem.shape;
    const [encode, decode] = CODECS[problem.element];
    status.textContent = 'Compiling the kernels …';
    await breath();
    // Every refusal of the problem comes from here, before anything is allocated.
    const plans = { flash: await attention.plan(problem) };
    const tensors = [1, 2, 3].map((seed) => encode(random(numHeads * seqlen * headDim, seed)));
    const resident = await Promise.all(tensors.map((tensor) => attention.upload(tensor, { element: problem.element })));
    try {
      const [q, k, v] = resident;
      const outputs = {};
      const times = {};
      const run = async (algorithm) => {
        const all = [];
        const began = performance.now();
        // The first run warms up.
        for (let turn = 0; turn <= RUNS && (turn < 2 || performance.now() - began < RUNS_MS); turn++) {
          status.textContent = turn === 0 ? `${algorithm}, warming up …` : `${algorithm}, run ${turn} of at most ${RUNS} …`;
          const { o, lse, stats } = await attention.forward({
            ...problem, q, k, v, algorithm, signal,
            onProgress: ({ completed, total }) => progress.value = completed / total,
          });
          if (turn > 0) all.push(stats.milliseconds);
          else outputs[algorithm] = decode(await o.read());
          o.destroy();
          lse.destroy();
        }
        const { kernels, tiles, extraBytes, flops } = plans[algorithm];
        const [time, memory, , how] = cells(algorithm);
        times[algorithm] = all.sort((a, b) => a - b)[all.length >> 1];
        show(time, duration(times[algorithm]), rate(flops, times[algorithm]));
        show(memory, bytes(extraBytes));
        show(how, kernels.join(', '), tiles);
      };
      await run('flash');
      try {
        plans.standard = await attention.plan({ ...problem, algorithm: 'standard' });
        await run('standard');
      } catch (error) {
        // Its score matrix may be more than the GPU has: then flash runs alone.
        if (!(error instanceof UnsupportedError || error instanceof OutOfMemoryError)) throw error;
        delete times.standard;
        show(cells('standard')[0], 'impossible here:', error.message);
      }
      await check(problem, tensors.map(decode), outputs, times);
      bars(0, times);
      bars(1, Object.fromEntries(Object.entries(plans).map(([algorithm, { extraBytes }]) => [algorithm, extraBytes])));
    } finally {
      for (const tensor of resident) tensor.destroy();
    }
  }

  /** A sample of rows in f64; flash may err twice as much as standard attention, and a little more. */
  async function check(problem, [q, k, v], outputs, times) {
    const { numHeads, seqlen, headDim } = problem.shape;
    const rows = Math.min(SAMPLE, numHeads * seqlen);
    const errors = Object.fromEntries(Object.keys(outputs).map((algorithm) => [algorithm, 0]));
    let largest = 0;
    const began = performance.now();
    let computing = 0;
    for (let index = 0; index < rows; index++) {
      controller.signal.throwIfAborted();
      const head = index % numHeads;
      const i = Math.floor((index + 0.5) / rows * seqlen);
      const start = performance.now();
      const { o } = referenceRow(problem, q, k, v, 0, head, i);
      computing += performance.now() - start;
      const first = (i * numHeads + head) * headDim;
      for (const [algorithm, output] of Object.entries(outputs)) {
        errors[algorithm] = Math.max(errors[algorithm], largestError(output.subarray(first, first + headDim), o));
      }
      largest = o.reduce((largest, value) => Math.max(largest, Math.abs(value)), largest);
      progress.value = (index + 1) / rows;
      status.textContent = `JavaScript, row ${index + 1} of a sample of ${rows} …`;
      if (performance.now() - began > 16) await breath();
    }
    times.javascript = computing / rows * numHeads * seqlen;
    const [time, , , how] = cells('javascript');
    show(time, duration(times.javascript), `estimated from ${rows} rows`);
    show(how, 'plain loops', 'one core');
    for (const [algorithm, error] of Object.entries(errors)) show(cells(algorithm)[2], scientific(error), `in ${rows} rows`);
    const found = `flash errs by ${scientific(errors.flash)}`;
    if (!('standard' in errors)) {
      verdict.textContent = `${found}; there is no standard attention to compare it with.`;
      return;
    }
    const allowed = 2 * errors.standard + (problem.element === 'f32' ? 1e-6 * largest : 1e-5);
    verdict.textContent = errors.flash <= allowed
      ? `Right: ${found}; twice the error of standard attention in the same precision, ${scientific(allowed)}, is allowed.`
      : `Wrong: ${found}, only ${scientific(allowed)} is allowed. Please report this with your GPU and browser.`;
  }
}
