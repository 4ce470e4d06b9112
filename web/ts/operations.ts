import type { Device } from './device.js';
import { toWasm, type Asked, type Element, type Task } from './options.js';
import { compileAlone } from './wgsl.js';
import type { Prepared, Problem } from './wasm.js';

/** Operations that are kept for the next call with the same problem. */
const KEPT = 16;
/** Scratch memory above this is not kept between calls. */
const KEPT_SCRATCH_BYTES = 2 ** 26;

interface Operation {
  /** The task, and its problem as WebAssembly has it, by which it is found again. */
  task: string;
  problem: Problem;
  prepared: Promise<Prepared>;
  flops: number;
  /** The end of the last run: runs share the scratch memory, so they follow one another. */
  tail: Promise<unknown>;
}

/** @internal Prepared operations, by problem. */
export class Operations {
  readonly #device: Device;
  /** The last one used is the last one forgotten. */
  #kept: Operation[] = [];

  constructor(device: Device) {
    this.#device = device;
  }

  /** Prepares the problem, or takes it from those prepared before, and runs `use` when no other run uses it. */
  async use<T>(
    task: Task,
    problem: Asked,
    element: Element,
    maxFlops: number | undefined,
    use: (prepared: Prepared, flops: number) => Promise<T>,
  ): Promise<T> {
    const operation = this.#get(task, problem, element, maxFlops);
    const result = operation.tail.then(async () => use(await operation.prepared, operation.flops));
    operation.tail = result.catch(() => undefined);
    return result;
  }

  #get(task: Task, asked: Asked, element: Element, maxFlops: number | undefined): Operation {
    const problem = toWasm(asked, element, maxFlops);
    const name = JSON.stringify(task);
    const kept = this.#kept.find((other) => other.task === name && other.problem.is_same(problem));
    if (kept) {
      problem.free();
      this.#kept = [...this.#kept.filter((other) => other !== kept), kept];
      return kept;
    }
    const prepared = this.#prepare(task, asked, problem).catch((error: unknown) => {
      throw this.#device.translate(error);
    });
    const operation: Operation = { task: name, problem, prepared, flops: flopsOf(task, asked, problem), tail: Promise.resolve() };
    this.#kept.push(operation);
    void prepared.then(
      ({ scratch_bytes }) => {
        if (scratch_bytes > KEPT_SCRATCH_BYTES) this.#forget(operation);
      },
      () => this.#forget(operation),
    );
    if (this.#kept.length > KEPT) this.#forget(this.#kept[0]!);
    return operation;
  }

  async #prepare(task: Task, asked: Asked, problem: Problem): Promise<Prepared> {
    await compileAlone(this.#device, asked);
    const device = this.#device.wasm;
    if (task.direction === 'probabilities') return device.prepare_probabilities(problem, ...task.heads, ...task.rows);
    return task.direction === 'forward' ? device.prepare(problem) : device.prepare_backward(problem);
  }

  /** Not to be found any more; freed when those who found it have ended. */
  #forget(operation: Operation): void {
    if (!this.#kept.includes(operation)) return;
    this.#kept = this.#kept.filter((other) => other !== operation);
    // The caller that is about to use it adds itself to `tail` first.
    setTimeout(() => void operation.tail.then(async () => {
      const prepared = await operation.prepared.catch(() => undefined);
      prepared?.destroy();
      prepared?.free();
      operation.problem.free();
    }));
  }

  destroy(): void {
    for (const operation of this.#kept) this.#forget(operation);
  }
}

/** Operations of the task, as far as the problem counts them. */
function flopsOf(task: Task, { shape }: Asked, problem: Problem): number {
  if (task.direction !== 'probabilities') return task.direction === 'forward' ? problem.flops : problem.backward_flops;
  const { numHeads = 1, seqlen, headDim, headDimV = headDim } = shape;
  const [heads, rows] = [task.heads, task.rows].map(([first, end]) => end - first) as [number, number];
  return problem.flops * headDim / (headDim + headDimV) * heads / numHeads * rows / seqlen;
}
