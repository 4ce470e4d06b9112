import { checkNumbers } from './checks.js';

const word = new Uint32Array(1);
const float = new Float32Array(word.buffer);

/** The bits of the nearest f16 (ties to even) of each number, for a tensor with `element: 'f16'`. */
export function toF16(values: ArrayLike<number>): Uint16Array<ArrayBuffer> {
  checkNumbers('toF16', values);
  return Uint16Array.from(values, (value) => {
    float[0] = value;
    const bits = word[0]!;
    const sign = bits >>> 16 & 0x8000;
    const magnitude = bits & 0x7fff_ffff;
    if (magnitude > 0x7f80_0000) return sign | 0x7e00;
    if (magnitude >= 0x477f_f000) return sign | 0x7c00;
    if (magnitude < 0x3880_0000) {
      // Subnormal: f32 arithmetic itself rounds to multiples of 2⁻²⁴ at 0.5.
      word[0] = magnitude;
      float[0] = float[0]! + 0.5;
      return sign | word[0]! - 0x3f00_0000;
    }
    return sign | magnitude - 0x3800_0000 + 0xfff + (magnitude >>> 13 & 1) >>> 13;
  });
}

/** The numbers that f16 bits stand for. */
export function fromF16(bits: Uint16Array): Float32Array<ArrayBuffer> {
  checkNumbers('fromF16', bits, 'Uint16Array');
  return Float32Array.from(bits, (half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = half >>> 10 & 31;
    const fraction = half & 0x3ff;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  });
}

/** The bits of the nearest bf16 (ties to even) of each number, for a tensor with `element: 'bf16'`. */
export function toBf16(values: ArrayLike<number>): Uint16Array<ArrayBuffer> {
  checkNumbers('toBf16', values);
  return Uint16Array.from(values, (value) => {
    float[0] = value;
    const bits = word[0]!;
    if ((bits & 0x7fff_ffff) > 0x7f80_0000) return bits >>> 16 | 0x40;
    return bits + 0x7fff + (bits >>> 16 & 1) >>> 16;
  });
}

/** The numbers that bf16 bits stand for. */
export function fromBf16(bits: Uint16Array): Float32Array<ArrayBuffer> {
  checkNumbers('fromBf16', bits, 'Uint16Array');
  return Float32Array.from(bits, (half) => {
    word[0] = half << 16;
    return float[0]!;
  });
}
