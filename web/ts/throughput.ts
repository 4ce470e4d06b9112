/** One dispatch should take about this long: short beside a watchdog's 2 s and a person's patience. */
const DISPATCH_MS = 40;
/** Until something was measured: a second for a slow software driver. */
const FIRST_BOUND = 2 ** 29;
const LEAST_BOUND = 2 ** 24;

/** @internal How much this GPU does in a millisecond, learnt from its runs. */
export class Throughput {
  #flopsPerMs = 0;

  /** The most floating-point operations that a dispatch should hold; a power of two, so that plans can be used again. */
  bound(): number {
    if (this.#flopsPerMs === 0) return FIRST_BOUND;
    return Math.max(LEAST_BOUND, 2 ** Math.floor(Math.log2(this.#flopsPerMs * DISPATCH_MS)));
  }

  learn(flops: number, milliseconds: number): void {
    // Shorter batches measure the way to the GPU and back, and clocks are coarse.
    if (milliseconds < 4) return;
    const rate = flops / milliseconds;
    // The best counts, because what is slower may be small or disturbed; but a GPU can also have become slower.
    this.#flopsPerMs = rate > this.#flopsPerMs || milliseconds < 4 * DISPATCH_MS
      ? Math.max(rate, this.#flopsPerMs)
      : (this.#flopsPerMs + rate) / 2;
  }
}
