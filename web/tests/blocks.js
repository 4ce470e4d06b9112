// Block masks: each pattern against f64, which asks its rule for every key.
import { InvalidProblemError } from '../pkg/index.js';
import { philox } from '../demo/reference.js';
import { assertThrows, attention, checkModified, inputs } from './support.js';

const SIDE = 64;

/** Whether a row of blocks of BigBird sees a column. */
function bigbird(seed, blocks, head, row, column) {
  const isSeen = (column) => Math.abs(column - row) <= 1 || column === 0 || column === blocks - 1;
  if (row === 0 || row === blocks - 1 || isSeen(column)) return true;
  const left = Array.from({ length: blocks }, (_, column) => column).filter((column) => !isSeen(column));
  const words = philox([Number(seed & 0xffff_ffffn), Number(seed >> 32n)], [row, head, 0, 0]).slice(0, 3);
  return words.map((word) => left.splice(Number(BigInt(word) * BigInt(left.length) >> 32n), 1)[0]).includes(column);
}

export async function blockMasks() {
  const shape = { batch: 2, numHeads: 2, numHeadsKv: 1, seqlen: 70, seqlenKv: 90, headDim: 4 };
  const ids = Array.from({ length: 180 }, (_, j) => Math.floor(j % 90 / (j < 90 ? 25 : 31)));
  const kinds = Uint8Array.from({ length: 2 * 5 * 3 }, (_, block) => (block * 7 + 3) % 11 % 3);
  for (const [name, blockMask, sees, more] of [
    ['local', { pattern: 'local', window: 9 }, (b, h, i, j, p) => Math.abs(p - j) <= 9],
    ['longformer', { pattern: 'longformer', window: 5, global: 30 }, (b, h, i, j, p) => Math.abs(p - j) <= 5 || j < 30 || p < 30],
    ['strided', { pattern: 'strided', step: 7 }, (b, h, i, j, p) => Math.abs(p - j) < 7 || (p - j) % 7 === 0, { causal: true }],
    ['prefix', { pattern: 'prefix', length: 40 }, (b, h, i, j, p) => j < 40 || j <= p],
    ['documents of each sequence', { pattern: 'documents', ids }, (b, h, i, j, p) => ids[b * 90 + p] === ids[b * 90 + j], { causal: true }],
    ['documents', { pattern: 'documents', ids: Uint32Array.from(ids.slice(0, 90)) }, (b, h, i, j, p) => ids[p] === ids[j]],
    ['own blocks', { pattern: 'blocks', kinds, shape: [1, 2], blockSize: [16, 32] },
      (b, h, i, j) => kinds[(h * 5 + Math.floor(i / 16)) * 3 + Math.floor(j / 32)] > 0, { window: [60, 30] }],
  ]) {
    await checkModified(name, { shape, blockMask, twins: { sees }, ...more });
  }
  const large = { numHeads: 2, seqlen: 7 * SIDE, headDim: 4 };
  const block = (at) => Math.floor(at / SIDE);
  await checkModified('butterfly', { shape: large, blockMask: { pattern: 'butterfly' }, twins: { sees: (b, h, i, j) => [0, 1, 2, 4].includes(block(i) ^ block(j)) } });
  const seed = 0x1234_5678_9abc_def0n;
  await checkModified('bigbird', { shape: large, blockMask: { pattern: 'bigbird', seed }, twins: { sees: (b, h, i, j) => bigbird(seed, 7, h, block(i), block(j)) } });

  const good = { shape, ...inputs({ shape }) };
  const refused = async (blockMask, text) => assertThrows((await attention()).forward({ ...good, blockMask }), InvalidProblemError, text);
  await refused('local', 'blockMask is of type String');
  await refused({ pattern: 'global' }, "blockMask.pattern = 'global'; it is local, longformer");
  await refused({ pattern: 'local' }, 'blockMask.window = undefined; it must be a whole number');
  await refused({ pattern: 'strided', step: 0 }, 'strided mask: its step is 0');
  await refused({ pattern: 'documents', ids: [1, 2] }, 'blockMask.ids has 2 numbers; it must have seqlenKv = 90, or batch · seqlenKv = 180');
  await refused({ pattern: 'bigbird', seed: -1 }, 'blockMask.seed = -1');
  await refused({ pattern: 'blocks', kinds: [1], shape: [1] }, 'blockMask.shape has 1 numbers; it must have pair = 2');
  await refused({ pattern: 'blocks', kinds: [1], blockSize: [0, 8] }, 'blockMask.blockSize[0] = 0; it must be at least 1');
  await refused({ pattern: 'blocks', kinds: [1], blockSize: [16, 32] }, 'blockMask.kinds has 1 numbers; it must have [1, 1, 5, 3] = 15');
  await refused({ pattern: 'blocks', kinds: [3, 0], blockSize: [70, 45] }, 'blockMask.kinds[0] = 3; it must be a whole number from 0 to 2');
  await refused({ pattern: 'blocks', kinds: new Uint8Array(6), shape: [3, 1], blockSize: [70, 45] }, 'blocks mask: it has 3 sequences; the problem has 2');
}
