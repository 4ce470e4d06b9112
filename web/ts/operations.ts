import type { Device } from './device.js';
import { toWasm, type AttentionProblem, type BackwardOptions, type Direction, type Element } from './options.js';
import type { Prepared } from './wasm.js';

/** Operations that are kept for the next call with the same problem. */
const KEPT = 16;
/** Scratch memory above this is not kept between calls. */
const KEPT_SCRATCH_BYTES = 2 ** 26;

type Problem = AttentionProblem & Pick<Partial<BackwardOptions>, 'gradientElement'>;

interface Operation {
  prepared: Promise<Prepared>;
  flops: number;
  /** The end of the last run: runs share the scratch memory, so they follow one another. */
  tail: Promise<unknown>;
}

/** @internal Prepared operations, by problem. */
export class Operations {
  readonly #device: Device;
  readonly #kept = new Map<string, Operation>();

  constructor(device: Device) {
    this.#device = device;
  }

  /** Prepares the problem, or takes it from those prepared before, and runs `use` when no other run uses it. */
  async use<T>(
    direction: Direction,
    problem: Problem,
    element: Element,
    maxFlops: number | undefined,
    use: (prepared: Prepared, flops: number) => Promise<T>,
  ): Promise<T> {
    const operation = this.#get(direction, problem, element, maxFlops);
    const result = operation.tail.then(async () => use(await operation.prepared, operation.flops));
    operation.tail = result.catch(() => undefined);
    return result;
  }

  #get(direction: Direction, problem: Problem, element: Element, maxFlops: number | undefined): Operation {
    const wasm = toWasm(problem, element, maxFlops);
    const name = `${direction} ${wasm.key}`;
    const kept = this.#kept.get(name);
    if (kept) {
      wasm.free();
      // The last one used is the last one forgotten.
      this.#kept.delete(name);
      this.#kept.set(name, kept);
      return kept;
    }
    const device = this.#device.wasm;
    const isForward = direction === 'forward';
    const prepared = (isForward ? device.prepare(wasm) : device.prepare_backward(wasm)).catch((error: unknown) => {
      throw this.#device.translate(error);
    });
    const operation: Operation = { prepared, flops: isForward ? wasm.flops : wasm.backward_flops, tail: Promise.resolve() };
    this.#kept.set(name, operation);
    void prepared.finally(() => wasm.free()).then(
      ({ scratch_bytes }) => {
        if (scratch_bytes > KEPT_SCRATCH_BYTES) this.#forget(name, operation);
      },
      () => this.#kept.delete(name),
    );
    for (const [name, operation] of this.#kept) {
      if (this.#kept.size <= KEPT) break;
      this.#forget(name, operation);
    }
    return operation;
  }

  /** Not to be found any more; freed when those who found it have ended. */
  #forget(name: string, operation: Operation): void {
    this.#kept.delete(name);
    // The caller that is about to use it adds itself to `tail` first.
    setTimeout(() => void operation.tail.then(async () => {
      const prepared = await operation.prepared;
      prepared.destroy();
      prepared.free();
    }).catch(() => undefined));
  }

  destroy(): void {
    for (const [name, operation] of this.#kept) this.#forget(name, operation);
  }
}
