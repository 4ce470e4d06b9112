import { InvalidOptionError, InvalidProblemError, InvalidTensorError, worded } from './errors.js';
import type { AttentionProblem, Shape } from './options.js';

/** @internal What kind of thing a value is, for messages. */
export function describe(value: unknown): string {
  if (value === undefined || value === null) return String(value);
  let name: unknown;
  try {
    ({ name } = Object((value as { constructor?: unknown }).constructor) as { name?: unknown });
  } catch {
    // Not even that may be asked of it.
  }
  return `of type ${typeof name === 'string' && name || typeof value}`;
}

/** @internal Whether it has such a member; what throws when it is asked has none. */
export function has(value: unknown, name: string): boolean {
  try {
    return name in (Object(value) as object);
  } catch {
    return false;
  }
}

/** @internal A value as one would write it, for messages. */
export function shown(value: unknown): string {
  if (typeof value === 'string') return `'${value.length > 60 ? `${value.slice(0, 60)} …` : value}'`;
  if (typeof value === 'bigint') return `${value}n`;
  if (Array.isArray(value) && value.length <= 8) return `[${value.map(shown).join(', ')}]`;
  return typeof value === 'object' && value !== null || typeof value === 'function' ? `something ${describe(value)}` : String(value);
}

/** @internal */
export function whole(name: string, value: unknown, max: number): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= max) return value;
  throw new InvalidProblemError(`${name} = ${shown(value)}; it must be a whole number from 0 to ${max}`);
}

/** @internal A seed of up to 64 bits. */
export function seedOf(name: string, value: unknown): bigint {
  if (typeof value !== 'bigint') return BigInt(whole(name, value, Number.MAX_SAFE_INTEGER));
  if (value >= 0n && value < 2n ** 64n) return value;
  throw new InvalidProblemError(`${name} = ${shown(value)}; it must be a whole number of at most 64 bits`);
}

/** @internal */
export function number(name: string, value: unknown): number {
  if (typeof value === 'number') return value;
  throw new InvalidProblemError(`${name} = ${shown(value)}; it must be a number`);
}

/** @internal */
export const U32 = 0xffff_ffff;

/**
 * @internal An object of options, without any that are not `known`: a copy, so that each is read once, and what the caller changes
 * while the call waits is not seen.
 */
export function checkOptions<T>(what: string, given: T, known: readonly string[]): T {
  let copy: Record<string, unknown> | undefined;
  const unknown: string[] = [];
  try {
    if (typeof given === 'object' && given !== null && !ArrayBuffer.isView(given) && !Array.isArray(given)) {
      const options = given as Record<string, unknown>;
      copy = {};
      for (const name of known) {
        const value = copied(options[name]);
        if (value !== undefined) copy[name] = value;
      }
      // What is inherited counts too.
      for (const name in options) if (!known.includes(name) && options[name] !== undefined) unknown.push(name);
    }
  } catch (error) {
    throw new InvalidOptionError(`${what} is given something that cannot be read (${worded(error)})`, { cause: error });
  }
  if (copy === undefined) {
    const one = known[0] ?? '';
    throw new InvalidOptionError(`${what} is ${describe(given)}; pass an object such as { ${one}: … }`);
  }
  for (const name of unknown) {
    const near = known.find((other) => isNear(name.toLowerCase().replaceAll('_', ''), other.toLowerCase()));
    const all = known.length > 12 ? 'the README lists all' : `there are ${known.join(', ')}`;
    throw new InvalidOptionError(`${what} has no '${name}'; ${near === undefined ? all : `did you mean ${near}?`}`);
  }
  return copy as T;
}

/** Arrays and plain objects of data; everything else is what it is. */
function copied(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.slice();
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null) return value;
  const entries = Object.entries(value);
  // Such as the `gpu` of `create`.
  if (entries.some(([, member]) => typeof member === 'function')) return value;
  return Object.fromEntries(entries.map(([name, member]) => [name, copied(member)]));
}

/** Whether one word becomes the other by at most two insertions, deletions or changes. */
function isNear(one: string, other: string): boolean {
  let row = Array.from({ length: other.length + 1 }, (_, index) => index);
  for (let i = 1; i <= one.length; i++) {
    const next = [i];
    for (let j = 1; j <= other.length; j++) {
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (one[i - 1] === other[j - 1] ? 0 : 1)));
    }
    row = next;
  }
  return row.at(-1)! <= 2;
}

/** @internal One of some values, or undefined. */
export function oneOf<T>(name: string, value: unknown, allowed: readonly T[]): T | undefined {
  if (value === undefined || allowed.includes(value as T)) return value as T | undefined;
  const words = allowed.map(shown);
  throw new InvalidOptionError(`${name} = ${shown(value)}; it is ${words.slice(0, -1).join(', ')} or ${words.at(-1)}`);
}

/** @internal Numbers in an array or typed array, each checked by `check`. `lengths` says how many there may be. */
export function numbers(
  name: string,
  values: unknown,
  lengths: Record<string, number>,
  check: (name: string, value: unknown) => number,
): number[] {
  if (!Array.isArray(values) && (!ArrayBuffer.isView(values) || values instanceof DataView)) {
    throw new InvalidProblemError(`${name} = ${shown(values)}; it must be an array of numbers`);
  }
  const { length } = values as ArrayLike<unknown>;
  if (!Object.values(lengths).includes(length)) {
    const allowed = Object.entries(lengths).map(([what, length]) => `${what} = ${length}`).join(', or ');
    throw new InvalidProblemError(`${name} has ${length} numbers; it must have ${allowed}`);
  }
  return Array.from(values as ArrayLike<unknown>, (value, index) => check(`${name}[${index}]`, value));
}

/** @internal What the helpers take: an array of numbers, or of a certain kind. */
export function checkNumbers(name: string, values: unknown, kind?: string): void {
  const tag = ArrayBuffer.isView(values) ? String(Reflect.get(values, Symbol.toStringTag)) : undefined;
  const areNumbers = tag === undefined
    ? Array.isArray(values) && values.every((value) => typeof value === 'number' || typeof value === 'boolean')
    : !['DataView', 'BigInt64Array', 'BigUint64Array'].includes(tag);
  if (kind === undefined ? areNumbers : tag === kind) return;
  throw new InvalidTensorError(`${name} is given something ${describe(values)}; it takes ${kind === undefined ? 'an array of numbers' : `a ${kind}`}`);
}

/** @internal All sizes of a problem. */
export function sizesOf({ shape }: AttentionProblem): Record<keyof Shape, number> {
  if (typeof shape !== 'object' || shape === null || Array.isArray(shape)) {
    throw new InvalidProblemError(`shape is ${shape === undefined ? 'missing' : describe(shape)}: pass { batch, numHeads, seqlen, headDim }`);
  }
  const { batch = 1, numHeads = 1, numHeadsKv = numHeads, seqlen, seqlenKv = seqlen, headDim, headDimV = headDim } = shape;
  const sizes = { batch, numHeads, numHeadsKv, seqlen, seqlenKv, headDim, headDimV };
  for (const [name, value] of Object.entries(sizes)) whole(`shape.${name}`, value, U32);
  return sizes;
}
