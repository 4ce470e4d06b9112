// Numbers for people.

/** Milliseconds with three significant digits, and seconds, minutes and hours where they say more. */
export function duration(ms) {
  if (ms < 1000) return `${Number(ms.toPrecision(3))} ms`;
  if (ms < 60_000) return `${Number((ms / 1000).toPrecision(3))} s`;
  if (ms < 3_600_000) return `${Number((ms / 60_000).toPrecision(2))} min`;
  return `${Number((ms / 3_600_000).toPrecision(2))} h`;
}

/** Bytes in binary units. */
export function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (count >= 1024 && unit + 1 < units.length) {
    count /= 1024;
    unit += 1;
  }
  return `${Number(count.toPrecision(3))} ${units[unit]}`;
}

/** Floating-point operations in a second. */
export function rate(flops, ms) {
  const perSecond = flops / ms * 1000;
  return perSecond >= 1e12 ? `${(perSecond / 1e12).toPrecision(3)} TFLOP/s` : `${(perSecond / 1e9).toPrecision(3)} GFLOP/s`;
}

/** An error in powers of ten. */
export function scientific(value) {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const [digits, exponent] = value.toExponential(1).split('e');
  const superscript = [...exponent.replace('+', '')].map((character) => character === '-' ? '⁻' : '⁰¹²³⁴⁵⁶⁷⁸⁹'[Number(character)]);
  return `${digits}·10${superscript.join('')}`;
}
