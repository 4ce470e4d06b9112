import { checkNumbers, shown } from './checks.js';
import { InvalidTensorError } from './errors.js';

/**
 * The bits of a boolean mask, for `mask: { data }`: `mayAttend` has rows of `keys` entries, true or not 0 where the row may
 * attend to the key. Each row starts a word, with its first key in the lowest bit.
 */
export function packMask(mayAttend: ArrayLike<number | boolean>, keys: number): Uint32Array<ArrayBuffer> {
  checkNumbers('packMask', mayAttend);
  const rows = keys === 0 ? 0 : mayAttend.length / keys;
  if (!Number.isInteger(keys) || keys < 0 || !Number.isInteger(rows) || rows < 0) {
    throw new InvalidTensorError(`a mask of ${mayAttend.length} entries has no rows of ${shown(keys)} keys`);
  }
  const wordsOfRow = Math.ceil(keys / 32);
  const words = new Uint32Array(rows * wordsOfRow);
  for (let row = 0; row < rows; row++) {
    for (let key = 0; key < keys; key++) {
      if (mayAttend[row * keys + key]) words[row * wordsOfRow + (key >>> 5)]! |= 1 << (key & 31);
    }
  }
  return words;
}
