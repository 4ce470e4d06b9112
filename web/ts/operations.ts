import { toAppend } from './append.js';
import type { Device } from './device.js';
import { fromWasm } from './errors.js';
import { toWasm, type Asked, type Element, type Task } from './options.js';
import type { TensorElement } from './tensor.js';
import { compileAlone } from './wgsl.js';
import type { Append, Planned, Prepared, Problem } from './wasm.js';

/** Operations that are kept for the next call with the same problem. */
const KEPT = 16;
/** Scratch memory above this is not kept between calls. */
const KEPT_SCRATCH_BYTES = 2 ** 26;

/** @internal What an operation needs of a tensor. */
export interface Needed {
  /** Elements that its buffer must hold. */
  length: number;
  /** Their type; undefined for what the operation does not have. */
  element: TensorElement | undefined;
  /** Whether the problem's layout places it; the others are contiguous. */
  hasLayout: boolean;
}

/** @internal A planned operation, which is compiled when it is first used. */
export class Operation {
  readonly #device: Device;
  readonly #asked: Asked;
  readonly #task: Task;
  readonly problem: Problem;
  readonly #append: Append | undefined;
  readonly planned: Planned;
  readonly flops: number;
  /** What is to be compiled, by which it is found again. */
  readonly task: string;
  /** Calls that use it, or hold it for later. */
  users = 0;
  isKept = true;
  /** Set when it is compiled. */
  prepared: Prepared | undefined;
  /** How many dispatches a call takes, when it is compiled. */
  dispatches = 0;
  #preparing: Promise<Prepared> | undefined;
  readonly #needed = new Map<string, Needed>();
  #isFree = false;
  /** The end of the last run of several submissions. */
  #tail: Promise<unknown> = Promise.resolve();

  constructor(device: Device, task: Task, asked: Asked, problem: Problem) {
    this.#device = device;
    this.#task = task;
    this.#asked = asked;
    this.problem = problem;
    this.task = JSON.stringify(task);
    const { wasm } = device;
    const append = this.#append = task.direction === 'append' ? toAppend(problem, task.append) : undefined;
    try {
      this.planned = append ? wasm.plan_append(append)
        : task.direction === 'probabilities' ? wasm.plan_probabilities(problem, ...task.heads, ...task.rows)
          : task.direction === 'forward' ? wasm.plan(problem) : wasm.plan_backward(problem);
    } catch (error) {
      append?.free();
      throw error;
    }
    this.flops = flopsOf(task, asked, problem);
  }

  /** What it needs of the tensor of the crate's name `name`; WebAssembly is asked once. */
  needs(name: string): Needed {
    let needed = this.#needed.get(name);
    if (needed === undefined) {
      const { planned } = this;
      needed = { length: planned.required_len(name), element: planned.element(name) as TensorElement | undefined, hasLayout: planned.has_layout(name) };
      this.#needed.set(name, needed);
    }
    return needed;
  }

  /** Compiles it, once. */
  ready(): Promise<Prepared> {
    return this.#preparing ??= this.#prepare();
  }

  async #prepare(): Promise<Prepared> {
    await compileAlone(this.#device, this.#asked);
    const { wasm } = this.#device;
    const task = this.#task;
    const { problem } = this;
    const preparing = this.#append ? wasm.prepare_append(this.#append)
      : task.direction === 'probabilities' ? wasm.prepare_probabilities(problem, ...task.heads, ...task.rows)
        : task.direction === 'forward' ? wasm.prepare(problem) : wasm.prepare_backward(problem);
    this.prepared = await preparing.catch((error: unknown) => {
      throw this.#device.translate(error);
    });
    this.dispatches = this.prepared.num_dispatches;
    return this.prepared;
  }

  /** Runs of several submissions share the scratch memory, so they follow one another. */
  inTurn<T>(run: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(run);
    this.#tail = result.catch(() => undefined);
    return result;
  }

  freeIfUnused(): void {
    if (this.#isFree || this.isKept || this.users > 0) return;
    this.#isFree = true;
    this.prepared?.destroy();
    this.prepared?.free();
    this.planned.free();
    this.#append?.free();
    this.problem.free();
  }
}

/** @internal Prepared operations, by problem. */
export class Operations {
  readonly #device: Device;
  /** The last one used is the last one forgotten. */
  #kept: Operation[] = [];

  constructor(device: Device) {
    this.#device = device;
  }

  /** Plans the problem, or takes it from those planned before. `release` gives it back. */
  acquire(task: Task, asked: Asked, element: Element, maxFlops: number | undefined): Operation {
    const problem = toWasm(asked, element, maxFlops);
    const name = JSON.stringify(task);
    let operation = this.#kept.find((other) => other.task === name && other.problem.is_same(problem));
    if (operation) {
      problem.free();
      this.#kept = this.#kept.filter((other) => other !== operation);
    } else {
      try {
        operation = new Operation(this.#device, task, asked, problem);
      } catch (error) {
        problem.free();
        throw fromWasm(error);
      }
    }
    operation.users++;
    this.#kept.push(operation);
    if (this.#kept.length > KEPT) this.#forget(this.#kept[0]!);
    return operation;
  }

  release(operation: Operation): void {
    operation.users--;
    const { prepared } = operation;
    if (!prepared || prepared.scratch_bytes > KEPT_SCRATCH_BYTES) this.#forget(operation);
    else operation.freeIfUnused();
  }

  /** Not to be found any more; freed when nobody uses it. */
  #forget(operation: Operation): void {
    this.#kept = this.#kept.filter((other) => other !== operation);
    operation.isKept = false;
    operation.freeIfUnused();
  }

  destroy(): void {
    for (const operation of this.#kept) this.#forget(operation);
  }
}

/** Operations of the task, as far as the problem counts them; an append moves numbers. */
function flopsOf(task: Task, { shape }: Asked, problem: Problem): number {
  if (task.direction === 'append') return 0;
  if (task.direction !== 'probabilities') return task.direction === 'forward' ? problem.flops : problem.backward_flops;
  const { numHeads = 1, seqlen, headDim, headDimV = headDim } = shape;
  const [heads, rows] = [task.heads, task.rows].map(([first, end]) => end - first) as [number, number];
  return problem.flops * headDim / (headDim + headDimV) * heads / numHeads * rows / seqlen;
}
