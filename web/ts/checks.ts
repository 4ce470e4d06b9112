import { InvalidProblemError } from './errors.js';
import type { AttentionProblem, Shape } from './options.js';

/** @internal */
export function whole(name: string, value: unknown, max: number): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= max) return value;
  throw new InvalidProblemError(`${name} = ${String(value)}; it must be a whole number from 0 to ${max}`);
}

/** @internal */
export function number(name: string, value: unknown): number {
  if (typeof value === 'number') return value;
  throw new InvalidProblemError(`${name} = ${String(value)}; it must be a number`);
}

/** @internal */
export const U32 = 0xffff_ffff;

/** @internal Numbers in an array or typed array, each checked by `check`. `lengths` says how many there may be. */
export function numbers(
  name: string,
  values: unknown,
  lengths: Record<string, number>,
  check: (name: string, value: unknown) => number,
): number[] {
  if (!Array.isArray(values) && (!ArrayBuffer.isView(values) || values instanceof DataView)) {
    throw new InvalidProblemError(`${name} = ${String(values)}; it must be an array of numbers`);
  }
  const { length } = values as ArrayLike<unknown>;
  if (!Object.values(lengths).includes(length)) {
    const allowed = Object.entries(lengths).map(([what, length]) => `${what} = ${length}`).join(', or ');
    throw new InvalidProblemError(`${name} has ${length} numbers; it must have ${allowed}`);
  }
  return Array.from(values as ArrayLike<unknown>, (value, index) => check(`${name}[${index}]`, value));
}

/** @internal All sizes of a problem. */
export function sizesOf({ shape }: AttentionProblem): Required<Shape> {
  if (typeof shape !== 'object' || shape === null) {
    throw new InvalidProblemError('shape is missing: pass { batch, numHeads, seqlen, headDim }');
  }
  const { batch = 1, numHeads = 1, numHeadsKv = numHeads, seqlen, seqlenKv = seqlen, headDim, headDimV = headDim } = shape;
  const sizes = { batch, numHeads, numHeadsKv, seqlen, seqlenKv, headDim, headDimV };
  for (const [name, value] of Object.entries(sizes)) whole(`shape.${name}`, value, U32);
  return sizes;
}
