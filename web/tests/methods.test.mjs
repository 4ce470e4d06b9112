// The page's approximate methods: the figures of docs/talk.md, which come from `examples/talk`, and exact attention where nothing is left out.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { bigbird, exact, longformer, omega, performer, pooled, reformer, relativeError, sharedKeys } from '../demo/methods.js';

const file = (path) => readFileSync(fileURLToPath(new URL(`../../${path}`, import.meta.url)));
const [N, D] = [512, 32];

/** Heads of the bundled layer of MiniLM. */
function heads() {
  const bytes = file('examples/flash/data/minilm_layer0.safetensors');
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + length).toString());
  const tensor = (name, head) => {
    const first = 8 + length + header[name].data_offsets[0] + 4 * head * N * D;
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset + first, bytes.byteOffset + first + 4 * N * D));
  };
  return Array.from({ length: 12 }, (_, head) => ({ q: tensor('q', head), k: tensor('k', head), v: tensor('v', head), n: N, d: D }));
}

/** Errors on MiniLM, not causal, as docs/talk.md prints them. */
function printed() {
  const rows = file('docs/talk.md').toString().split('\n').filter((line) => /^\| [a-z-]+[^|]*\|( [^|]*\([^|]*\) \|| – \|){6}$/.test(line));
  return Object.fromEntries(rows.map((row) => {
    const cells = row.split('|').map((cell) => cell.trim());
    return [cells[1].split(' ')[0], cells[4].split(' (')[0]];
  }));
}

function asPrinted(error) {
  return `${Number((100 * error).toPrecision(2))} %`;
}

describe('methods beside exact attention', () => {
  const all = heads();
  const expected = all.map((head) => exact(head));
  const errorOf = (method, answers = expected) => relativeError(all.map((head, index) => [method(head, index), answers[index]]));

  test("the talk's figures", () => {
    const w = omega(Math.round(D * Math.log(D)), D);
    const found = {
      longformer: errorOf((head) => exact(head, longformer(256, 64))),
      bigbird: errorOf((head, index) => {
        const kinds = bigbird(N, 64, index);
        return exact(head, (i, j) => kinds[Math.floor(i / 64) * 8 + Math.floor(j / 64)] === 1);
      }),
      'linformer-pool': errorOf((head) => exact({ ...head, k: pooled(head.k, N, D, 256), v: pooled(head.v, N, D, 256) }, (_, j) => j < 256)),
      performer: errorOf((head) => performer(head, w)),
      reformer: errorOf((head) => reformer(head, 64, 4), all.map((head) => exact({ ...head, k: sharedKeys(head) }))),
    };
    const figures = printed();
    for (const [name, error] of Object.entries(found)) assert.equal(asPrinted(error), figures[name], name);
  });

  test('nothing is left out, nothing is lost', () => {
    const [head] = all;
    const near = (found, right, what) => assert(relativeError([[found, right]]) < 1e-12, what);
    near(exact(head, longformer(N, 0)), expected[0], 'a window over everything');
    near(exact({ ...head, k: pooled(head.k, N, D, N), v: pooled(head.v, N, D, N) }), expected[0], 'segments of one token');
    near(reformer(head, N, 1), exact({ ...head, k: sharedKeys(head) }, (i, j) => i !== j), 'one chunk');
    // A Performer's features are never all: their error falls as 1/√m.
    const [few, many] = [64, 1024].map((m) => relativeError([[performer({ ...head, q: head.q.map((x) => x / 4) }, omega(m, D), 0), exact({ ...head, q: head.q.map((x) => x / 4) })]]));
    assert(many < few / 2, `${few} with 64 features, ${many} with 1024`);
  });
});
