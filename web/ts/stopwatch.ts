import { BufferUsage, MAP_MODE_READ } from './usage.js';

/** @internal Measures one compute pass on the GPU. */
export class Stopwatch {
  readonly #queries: GPUQuerySet;
  readonly #times: GPUBuffer;
  readonly #staging: GPUBuffer;

  constructor(gpu: GPUDevice) {
    this.#queries = gpu.createQuerySet({ type: 'timestamp', count: 2 });
    this.#times = gpu.createBuffer({ size: 16, usage: BufferUsage.QUERY_RESOLVE | BufferUsage.COPY_SRC });
    this.#staging = gpu.createBuffer({ size: 16, usage: BufferUsage.MAP_READ | BufferUsage.COPY_DST });
  }

  /** The encoder, whose compute passes are measured. */
  around(encoder: GPUCommandEncoder): GPUCommandEncoder {
    const timestampWrites = { querySet: this.#queries, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 };
    const measuring = {
      beginComputePass: (descriptor: GPUComputePassDescriptor) => encoder.beginComputePass({ ...descriptor, timestampWrites }),
    };
    return measuring as unknown as GPUCommandEncoder;
  }

  /** After the pass; what is returned waits for its milliseconds, and frees everything. */
  stop(encoder: GPUCommandEncoder): () => Promise<number> {
    encoder.resolveQuerySet(this.#queries, 0, 2, this.#times, 0);
    encoder.copyBufferToBuffer(this.#times, 0, this.#staging, 0, 16);
    return async () => {
      try {
        await this.#staging.mapAsync(MAP_MODE_READ);
        const [began = 0n, ended = 0n] = new BigUint64Array(this.#staging.getMappedRange());
        return Number(ended - began) / 1e6;
      } finally {
        this.#queries.destroy();
        this.#times.destroy();
        this.#staging.destroy();
      }
    };
  }

  static canMeasure(gpu: GPUDevice): boolean {
    return gpu.features.has('timestamp-query');
  }
}
