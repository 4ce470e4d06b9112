// Approximate methods beside exact attention, on four heads of a real model: what they err, compute and store.
import { bigbird, exact, omega, performer, pooled, reformer, relativeError, sharedKeys } from './methods.js';
import { bytes, scientific } from './text.js';

const [HEADS, N, D] = [4, 512, 32];
const SHAPE = { numHeads: HEADS, seqlen: N, headDim: D };
const GLOBAL = 16;
const ROUNDS = 2;

const breath = () => new Promise((resolve) => setTimeout(resolve));
const ofHead = (tensor, head, rows = N) => tensor.subarray(head * rows * D, (head + 1) * rows * D);

function percent(share) {
  return share < 1e-3 ? scientific(share) : `${Number((100 * share).toPrecision(2))} %`;
}

function joined(heads) {
  const all = new Float32Array(heads.length * heads[0].length);
  heads.forEach((head, index) => all.set(head, index * head.length));
  return all;
}

export function compare(attention, { fromF16 }) {
  const form = document.querySelector('#compare-controls');
  const [table, caption, run] = ['#compare', '#compare-caption', '#compare-run'].map((id) => document.querySelector(id));
  const { budget: slider } = form.elements;
  const budgetOf = () => 2 ** Number(slider.value);
  let loading;
  let latest = 0;

  /** Q, K and V, and what is right in f64. */
  async function load() {
    const response = await fetch(new URL('./minilm512.bin', import.meta.url));
    if (!response.ok) throw new Error(`minilm512.bin did not load: the server answered ${response.status}`);
    const all = fromF16(new Uint16Array(await response.arrayBuffer()));
    const [q, k, v] = [0, 1, 2].map((index) => all.subarray(index * HEADS * N * D, (index + 1) * HEADS * N * D));
    const heads = Array.from({ length: HEADS }, (_, head) => ({ q: ofHead(q, head), k: ofHead(k, head), v: ofHead(v, head), n: N, d: D }));
    const [right, shared] = [[], []];
    for (const head of heads) {
      await breath();
      right.push(exact(head));
      shared.push(exact({ ...head, k: sharedKeys(head) }));
    }
    return { q, k, v, heads, right, shared };
  }

  /** Methods in the order of the table. Each gives its answer, operations, and bytes beyond Q, K, V and O. */
  function methods({ q, k, v, heads }, budget) {
    const whole = 4 * HEADS * N * N * D;
    const onGpu = async (problem, tensors) => {
      const { o } = await attention.forward({ layout: 'bhsd', ...problem, ...tensors });
      return Array.from({ length: HEADS }, (_, head) => ofHead(o, head));
    };
    const masked = async (blockMask) => ({
      answer: await onGpu({ shape: SHAPE, blockMask }, { q, k, v }),
      bytes: (await attention.plan({ shape: SHAPE, layout: 'bhsd', blockMask })).extraBytes,
    });
    const inTurn = async (method) => {
      const answer = [];
      for (const head of heads) {
        await breath();
        answer.push(method(head));
      }
      return answer;
    };
    return {
      flash: async () => ({
        answer: await onGpu({ shape: SHAPE }, { q, k, v }), flops: whole, bytes: (await attention.plan({ shape: SHAPE, layout: 'bhsd' })).extraBytes,
      }),
      longformer: async () => {
        const window = budget / 2;
        let pairs = 0;
        for (let i = 0; i < N; i++) {
          for (let j = 0; j < N; j++) if (Math.abs(i - j) <= window || j < GLOBAL || i < GLOBAL) pairs++;
        }
        return { ...await masked({ pattern: 'longformer', window, global: GLOBAL }), flops: 4 * HEADS * pairs * D };
      },
      bigbird: async () => {
        const side = budget / 8;
        const blocks = N / side;
        const kinds = new Uint8Array(HEADS * blocks * blocks);
        for (let head = 0; head < HEADS; head++) kinds.set(bigbird(N, side, head), head * blocks * blocks);
        const seen = kinds.reduce((sum, kind) => sum + kind, 0);
        return { ...await masked({ pattern: 'blocks', kinds, shape: [1, HEADS], blockSize: [side, side] }), flops: 4 * seen * side * side * D };
      },
      linformer: async () => {
        const short = (tensor) => joined(heads.map((_, head) => pooled(ofHead(tensor, head), N, D, budget)));
        const shape = { ...SHAPE, seqlenKv: budget };
        const { extraBytes } = await attention.plan({ shape, layout: 'bhsd' });
        return {
          answer: await onGpu({ shape }, { q, k: short(k), v: short(v) }), flops: HEADS * (4 * N * budget + 2 * N) * D,
          bytes: extraBytes + 2 * HEADS * budget * D * 4,
        };
      },
      performer: async () => {
        const w = omega(budget, D);
        return {
          answer: await inTurn((head) => performer(head, w)), flops: HEADS * 2 * N * budget * (4 * D + 3),
          bytes: 4 * budget * (HEADS * (D + 1) + D),
        };
      },
      reformer: async () => {
        const chunk = budget / 4;
        return {
          answer: await inTurn((head) => reformer(head, chunk, ROUNDS)), flops: HEADS * ROUNDS * N * (2 * chunk * 4 * D + 2 * D * Math.ceil(N / (2 * chunk))),
          bytes: 4 * HEADS * ROUNDS * N * (4 * D + 3), isShared: true,
        };
      },
    };
  }

  async function draw() {
    const mine = ++latest;
    run.setAttribute('aria-disabled', 'true');
    caption.textContent = 'Computing …';
    try {
      const model = await (loading ??= load());
      const budget = budgetOf();
      const found = {};
      for (const [name, method] of Object.entries(methods(model, budget))) {
        await breath();
        const { answer, flops, bytes: memory, isShared } = await method();
        if (mine !== latest) return;
        const right = isShared ? model.shared : model.right;
        found[name] = { error: relativeError(answer.map((o, head) => [o, right[head]])), work: flops / (4 * HEADS * N * N * D), memory };
      }
      show(found, budget);
    } catch (error) {
      if (mine !== latest) return;
      loading = undefined;
      // Its numbers are of another budget.
      table.hidden = true;
      caption.textContent = `It could not be computed. ${error?.name ?? 'Error'}: ${error?.message ?? error}`;
    } finally {
      if (mine === latest) run.setAttribute('aria-disabled', 'false');
    }
  }

  function show(found, budget) {
    table.hidden = false;
    const widest = (of) => Math.max(...Object.values(found).map((one) => one[of]));
    const [error, work, memory] = ['error', 'work', 'memory'].map(widest);
    for (const [name, one] of Object.entries(found)) {
      const [ofError, ofWork, ofMemory] = table.querySelectorAll(`[data-method="${name}"] td`);
      const fill = (cell, text, share) => {
        const bar = document.createElement('div');
        bar.className = 'bar';
        bar.style.width = `${100 * share}%`;
        cell.replaceChildren(text, bar);
      };
      fill(ofError, percent(one.error), one.error / error);
      fill(ofWork, percent(one.work), one.work / work);
      fill(ofMemory, bytes(one.memory), one.memory / memory);
    }
    const { flash, ...others } = found;
    const [[closest, best]] = Object.entries(others).sort(([, a], [, b]) => a.error - b.error);
    const title = table.querySelector(`[data-method="${closest}"] th`).firstChild.textContent.trim();
    caption.textContent = `With ${budget} keys or features for each row of ${N}, ${title} comes closest: it errs by ${percent(best.error)} with ` +
      `${percent(best.work)} of the arithmetic. FlashAttention does all of it, and errs by ${percent(flash.error)}.`;
  }

  slider.addEventListener('input', () => {
    form.querySelector('output').value = String(budgetOf());
    slider.setAttribute('aria-valuetext', `${budgetOf()} keys or features`);
    if (!table.hidden) void draw();
  });
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    if (run.getAttribute('aria-disabled') !== 'true') void draw();
  });
  run.setAttribute('aria-disabled', 'false');
}
