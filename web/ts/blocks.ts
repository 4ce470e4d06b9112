import { U32, checkOptions, describe, numbers, seedOf, shown, sizesOf, whole } from './checks.js';
import { InvalidProblemError, UnsupportedError } from './errors.js';
import type { AttentionProblem, BlockMask, OwnBlocks } from './options.js';
import type { Problem } from './wasm.js';

const MOST_DRAWN = 2 ** 20;

/** What else the patterns have. */
const OF_PATTERN: Record<BlockMask['pattern'], readonly string[]> = {
  local: ['window'], longformer: ['window', 'global'], strided: ['step'], prefix: ['length'], documents: ['ids'], butterfly: [], bigbird: ['seed'],
  blocks: ['kinds', 'shape', 'blockSize'],
};

/** @internal Gives the problem its block mask. */
export function maskBlocks(wasm: Problem, problem: AttentionProblem): void {
  const mask = problem.blockMask;
  if (mask === undefined) return;
  if (typeof mask !== 'object' || mask === null) throw new InvalidProblemError(`blockMask is ${describe(mask)}; pass { pattern: 'local', window: 128 }`);
  const [, others] = Object.entries(OF_PATTERN).find(([pattern]) => pattern === mask.pattern) ?? [];
  if (others) checkOptions('blockMask', mask, ['pattern', ...others]);
  const [parameters, values] = parametersOf(mask, problem);
  wasm.block_mask(mask.pattern, Uint32Array.from(parameters), Uint32Array.from(values));
}

/** The numbers of a pattern, and its ids or kinds. */
function parametersOf(mask: BlockMask, problem: AttentionProblem): [number[], number[]] {
  const u32 = (name: string, value: unknown): number => whole(`blockMask.${name}`, value, U32);
  switch (mask.pattern) {
    case 'local': return [[u32('window', mask.window)], []];
    case 'longformer': return [[u32('window', mask.window), u32('global', mask.global)], []];
    case 'strided': return [[u32('step', mask.step)], []];
    case 'prefix': return [[u32('length', mask.length)], []];
    case 'documents': {
      const { batch, seqlenKv } = sizesOf(problem);
      const ids = numbers('blockMask.ids', mask.ids, { seqlenKv, 'batch · seqlenKv': batch * seqlenKv }, (name, value) => whole(name, value, U32));
      return [[ids.length === seqlenKv ? 1 : batch], ids];
    }
    case 'butterfly': return [[], []];
    case 'bigbird': {
      const { seed = 0 } = mask;
      const { numHeads, seqlen, seqlenKv } = sizesOf(problem);
      const rows = numHeads * Math.max(Math.ceil(seqlen / 64), Math.ceil(seqlenKv / 64));
      // Each is drawn. More are of tensors that no device holds.
      if (rows > MOST_DRAWN) throw new UnsupportedError(`blockMask: bigbird draws ${rows} rows of blocks for ${numHeads} heads; at most ${MOST_DRAWN} are drawn`);
      const bits = seedOf('blockMask.seed', seed);
      return [[Number(bits & 0xffff_ffffn), Number(bits >> 32n)], []];
    }
    case 'blocks': return ownBlocks(mask, problem);
    default: throw new InvalidProblemError(`blockMask.pattern = ${shown((mask as BlockMask).pattern)}; it is local, longformer, strided, ` +
      'prefix, documents, butterfly, bigbird or blocks');
  }
}

function ownBlocks({ kinds, shape = [1, 1], blockSize = [128, 128] }: OwnBlocks, problem: AttentionProblem): [number[], number[]] {
  const pair = (name: string, given: unknown): number[] => numbers(`blockMask.${name}`, given, { pair: 2 }, (name, value) => {
    const number = whole(name, value, U32);
    if (number === 0 && name.includes('blockSize')) throw new InvalidProblemError(`${name} = 0; it must be at least 1`);
    return number;
  });
  const [counts, sides] = [pair('shape', shape), pair('blockSize', blockSize)];
  const { seqlen, seqlenKv } = sizesOf(problem);
  const all = [...counts, ...[seqlen, seqlenKv].map((length, index) => Math.ceil(length / sides[index]!))];
  const needed = all.reduce((product, count) => product * count);
  const values = numbers('blockMask.kinds', kinds, { [`[${all.join(', ')}]`]: needed }, (name, value) => whole(name, value, 2));
  return [[...all, ...sides], values];
}
