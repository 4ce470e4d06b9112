// Flash and standard attention on the same tensors, and a plain JavaScript check of a sample of rows.
import { largestError, row as referenceRow } from './reference.js';
import { bytes, duration, rate, scientific } from './text.js';

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

function fill(cell, text, detail = '') {
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

/** The problem in words. */
function inWords({ shape: { seqlen, numHeads, headDim }, element, causal, dropout }) {
  const heads = numHeads === 1 ? '1 head' : `${numHeads} heads`;
  return `N = ${seqlen}, ${heads}, d = ${headDim}, ${element}${causal ? ', causal' : ''}${dropout ? `, dropout ${dropout.p}` : ''}`;
}

export function race(attention, api, { complain, complainNoMore, changed }) {
  const { OutOfMemoryError, UnsupportedError, fromBf16, fromF16, toBf16, toF16 } = api;
  const CODECS = { f32: [(values) => values, (values) => values], f16: [toF16, fromF16], bf16: [toBf16, fromBf16] };
  const form = document.querySelector('#controls');
  const [run, stop, progress, status, verdict, winner, what, table, estimate, slider, length] =
    ['#run', '#stop', '#progress', '#status', '#verdict', '#winner', '#what', '#results', '#estimate', '#slider', '#length']
      .map((id) => document.querySelector(id));
  let controller;
  /** Floating-point operations in a millisecond, of the last races. */
  const rates = {};

  stop.addEventListener('click', () => controller?.abort());
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    // The button keeps the focus, so it is not disabled.
    if (run.getAttribute('aria-disabled') === 'true') return;
    controller = new AbortController();
    complainNoMore();
    verdict.textContent = '';
    winner.hidden = true;
    for (const cell of document.querySelectorAll('#results td')) cell.replaceChildren();
    run.setAttribute('aria-disabled', 'true');
    stop.disabled = false;
    try {
      const problem = readForm();
      what.textContent = inWords(problem);
      table.hidden = false;
      await compete(problem);
      status.textContent = 'Done.';
    } catch (error) {
      status.textContent = error?.name === 'AbortError' ? 'Stopped.' : 'It could not be computed: see above.';
      if (error?.name !== 'AbortError') complain(error);
      verdict.textContent = '';
      winner.hidden = true;
      table.hidden = true;
    } finally {
      progress.value = 0;
      if (document.activeElement === stop) run.focus();
      run.setAttribute('aria-disabled', 'false');
      stop.disabled = true;
      show();
    }
  });
  slider.addEventListener('input', () => {
    form.elements.seqlen.value = String(2 ** Number(slider.value));
    show();
  });
  form.addEventListener('input', ({ target }) => {
    if (target !== slider) show();
  });
  for (const button of form.querySelectorAll('[data-seqlen]')) {
    button.addEventListener('click', () => {
      form.elements.seqlen.value = button.dataset.seqlen;
      show();
    });
  }
  run.setAttribute('aria-disabled', 'false');
  show();

  /** What the controls say, with an estimate; nothing is run. */
  function show() {
    const { seqlen } = form.elements;
    length.value = seqlen.value;
    slider.value = String(Math.round(Math.log2(Math.max(1, Number(seqlen.value)))));
    slider.setAttribute('aria-valuetext', `${seqlen.value} tokens`);
    if (!form.checkValidity()) return;
    const problem = readForm();
    void foresee(problem).then((text) => estimate.textContent = text).catch(() => undefined);
    void changed(problem).catch(() => undefined);
  }

  async function foresee(problem) {
    const parts = [];
    for (const algorithm of ['flash', 'standard']) {
      try {
        const { flops, extraBytes } = await attention.plan({ ...problem, algorithm });
        const time = rates[algorithm] ? `about ${duration(flops / rates[algorithm])}, ` : '';
        parts.push(`${algorithm}: ${time}${bytes(extraBytes)} of memory`);
      } catch (error) {
        if (!(error instanceof UnsupportedError)) throw error;
        parts.push(`${algorithm}: more than this GPU can hold`);
      }
    }
    return `${parts.join('; ')}. ${rates.flash ? '' : 'How long it takes, the first run tells.'}`;
  }

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
            ...problem, q, k, v, algorithm, signal, gpuTime: true,
            onProgress: ({ completed, total }) => progress.value = completed / total,
          });
          if (turn > 0) all.push(stats);
          else outputs[algorithm] = decode(await o.read());
          o.destroy();
          lse.destroy();
        }
        const { kernels, tiles, extraBytes, flops } = plans[algorithm];
        const [time, memory, , how] = cells(algorithm);
        const { milliseconds, gpuMilliseconds } = all.sort((a, b) => a.milliseconds - b.milliseconds)[all.length >> 1];
        times[algorithm] = milliseconds;
        rates[algorithm] = flops / milliseconds;
        // Browsers round the GPU's clock, some to a tenth of a millisecond.
        const parts = gpuMilliseconds === undefined ? "this browser does not tell the GPU's own time"
          : `${duration(gpuMilliseconds)} on the GPU, ${duration(Math.max(0, milliseconds - gpuMilliseconds))} there and back`;
        fill(time, duration(milliseconds), `${rate(flops, milliseconds)}; ${parts}`);
        fill(memory, bytes(extraBytes));
        fill(how, kernels.join(', '), tiles);
      };
      await run('flash');
      try {
        plans.standard = await attention.plan({ ...problem, algorithm: 'standard' });
        await run('standard');
      } catch (error) {
        // Its score matrix may be more than the GPU has: then flash runs alone.
        if (!(error instanceof UnsupportedError || error instanceof OutOfMemoryError)) throw error;
        delete times.standard;
        fill(cells('standard')[0], 'impossible here:', error.message);
      }
      crown(times, plans);
      await check(problem, tensors.map(decode), outputs, times);
      bars(0, times);
      bars(1, Object.fromEntries(Object.entries(plans).map(([algorithm, { extraBytes }]) => [algorithm, extraBytes])));
    } finally {
      for (const tensor of resident) tensor.destroy();
    }
  }

  /** Names the winner. */
  function crown({ flash, standard }, plans) {
    winner.hidden = false;
    if (standard === undefined) {
      winner.textContent = 'flash wins: standard attention does not fit this GPU.';
      return;
    }
    const share = plans.standard.extraBytes / plans.flash.extraBytes;
    const memory = share > 1.5 ? `with 1/${Math.round(share)} of the memory` : 'with as much memory';
    const ratio = standard / flash;
    const digits = (value) => Number(value.toPrecision(3));
    winner.textContent = ratio > 1.05 ? `flash is ${digits(ratio)} times faster, ${memory}.`
      : ratio < 0.95 ? `standard attention is ${digits(1 / ratio)} times faster here; flash does ${memory}.`
        : `As fast as each other; flash ${memory}.`;
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
    fill(time, duration(times.javascript), `estimated from ${rows} rows`);
    fill(how, 'plain loops', 'one core');
    for (const [algorithm, error] of Object.entries(errors)) fill(cells(algorithm)[2], scientific(error), `in ${rows} rows`);
    const found = `flash errs by ${scientific(errors.flash)}`;
    if (!('standard' in errors)) {
      verdict.textContent = `${found}; there is no standard attention to compare it with.`;
      return;
    }
    const [floor, least] = problem.element === 'f32' ? [1e-6 * largest, '10⁻⁶ of the largest number'] : [1e-5, '10⁻⁵'];
    const allowed = 2 * errors.standard + floor;
    const rule = `allowed are twice standard attention's ${scientific(errors.standard)} and ${least}, together ${scientific(allowed)}`;
    verdict.textContent = errors.flash <= allowed
      ? `Right: ${found}; ${rule}.`
      : `Wrong: ${found}; ${rule}. Please report this with your GPU and browser.`;
  }
}
