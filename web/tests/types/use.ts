// What TypeScript must accept, and with `@ts-expect-error` what it must refuse. It is compiled, never run.
import {
  AttentionError, FlashAttention, GpuTensor, PreparedAppend, PreparedAttention, fromF16, packMask,
  type AppendOptions, type AppendProblem, type AttentionErrorCode, type AttentionProblem, type BackwardOptions, type CreateOptions, type ForwardArrays, type ForwardOptions,
  type ForwardTensors, type KvCache, type PreparedTensors, type ProbabilitiesOptions, type RunOptions, type Shape, type TensorData,
} from 'wgpu-flash-attention';
import address from 'wgpu-flash-attention/wasm_bg.wasm';

const create: CreateOptions = { powerPreference: undefined, device: undefined, subgroups: false, wasm: address, signal: AbortSignal.timeout(1000) };
const attention: FlashAttention = await FlashAttention.create(create);
const device: GPUDevice = attention.device;
const shape: Shape = { batch: undefined, numHeads: 8, seqlen: 128, headDim: 64 };
const problem: AttentionProblem = { shape, causal: true, window: [16, null], dropout: { p: 0.1, seed: undefined, offset: undefined } };
const q = new Float32Array(8 * 128 * 64);
const halves = new Uint16Array(8 * 128 * 64);
const run: RunOptions = { signal: undefined, boundedWork: false, onProgress: ({ completed, total }) => void (completed / total) };

// What comes back has the type of what goes in.
const arrays = await attention.forward({ ...problem, ...run, q, k: q, v: q });
const o: Float32Array<ArrayBuffer> = arrays.o;
const lse: Float32Array<ArrayBuffer> = arrays.lse;
const bits: Uint16Array<ArrayBuffer> = (await attention.forward({ shape, q: halves, k: halves, v: halves })).o;
fromF16(bits);
const float: ForwardOptions<Float32Array<ArrayBuffer>> = { shape, q, k: q, v: q };
const fromExported: ForwardArrays<Float32Array<ArrayBuffer>> = await attention.forward(float);

// The exported types can be passed on, whatever they hold.
function anything(options: ForwardOptions, output: 'gpu' | 'array' | undefined): Promise<ForwardArrays | ForwardTensors> {
  return attention.forward({ ...options, output });
}
const either = await anything({ shape, q: halves as TensorData, k: halves, v: halves }, undefined);
if (either.o instanceof GpuTensor) either.o.destroy();
const backward: BackwardOptions = { shape, q, k: q, v: q, o, lse, dO: o, dLse: undefined, gradientElement: undefined };
const gradients = await attention.backward(backward);
if (!(gradients.dq instanceof GpuTensor)) gradients.dq.length.toFixed();
const probabilities: ProbabilitiesOptions = { shape, q, k: q, lse, heads: [0, 1], rows: undefined };
const p = (await attention.probabilities({ ...probabilities, output: 'gpu' })).probabilities;
const chances: Float32Array<ArrayBuffer> = await p.read();

// Tensors know their elements.
const onGpu = await attention.upload(q);
const read: Float32Array<ArrayBuffer> = await onGpu.read();
const words: GpuTensor<'u32'> = await attention.upload(packMask([true, false], 2));
const wordsBack: Uint32Array<ArrayBuffer> = await words.read();
const brain: GpuTensor<'bf16'> = await attention.upload(halves, { element: 'bf16' });
const brainBack: Uint16Array<ArrayBuffer> = await brain.read();
const wrapped: GpuTensor<'f32'> = attention.wrap(onGpu.buffer, { offset: 256 });
const half: GpuTensor<'f16'> = attention.wrap(onGpu.buffer, { element: 'f16', length: 64 });
const tensors = await attention.forward({ shape, q: onGpu, k: onGpu, v: onGpu });
tensors.lse.element satisfies 'f32';
const bound: TensorData = half;

const prepared: PreparedAttention = await attention.prepare(problem, { signal: undefined });
const inputs: PreparedTensors = { q: onGpu, k: onGpu, v: onGpu, mask: undefined };
const written: ForwardTensors = await prepared.run({ ...inputs, dropout: { seed: 7n }, gpuTime: true });
prepared.encode({} as GPUCommandEncoder, { ...inputs, o: written.o, lse: written.lse });
prepared[Symbol.dispose]();
const back = await attention.prepareBackward({ ...problem, gradientElement: 'f32' });
const dq: GpuTensor = (await back.run({ ...inputs, o: written.o, lse: written.lse, dO: onGpu })).dq;
back.lengths.dq satisfies number;

// Caches and packed sequences.
const cache: KvCache = { element: 'int8', pageSize: 16, numPages: 8, maxPages: undefined };
const append: AppendProblem = { shape, element: undefined, cache, rotary: { pairs: 'halves', dim: undefined }, rotateQ: 'apart', newCacheSeqlens: true };
const appending: AppendOptions = { ...append, k: q, v: q, q, kCache: words, vCache: words, cacheSeqlens: [0], pageTable: words, rotaryCos: q, rotarySin: q };
const lengthsAfter: GpuTensor<'u32'> | undefined = (await attention.append(appending)).newCacheSeqlens;
const preparedAppend: PreparedAppend = await attention.prepareAppend(append);
preparedAppend.encode({} as GPUCommandEncoder, { k: onGpu, v: onGpu, kCache: words, vCache: words, q: onGpu, pageTable: words, qRotated: onGpu, newCacheSeqlens: words });
const over = await attention.forward({ shape, cache, pageTable: words, q, k: words, v: words, seqlensKv: lengthsAfter ?? [0], cuSeqlensQ: [0, 1] });
over.o satisfies Float32Array;
await attention.prepare({ shape, cache, seqlensKv: true, cuSeqlensQ: { total: 8 } });
// @ts-expect-error a cache is written, so it is on the GPU
await attention.append({ ...appending, kCache: q });

const code = (error: AttentionError): AttentionErrorCode => error.code;
{
  using later = attention;
  later.destroy();
}

// @ts-expect-error there is no such option
await attention.forward({ shape, q, k: q, v: q, casual: true });
// @ts-expect-error a boolean is no dropout
await attention.forward({ shape, q, k: q, v: q, dropout: true });
// @ts-expect-error headDim is missing
await attention.plan({ shape: { seqlen: 128 } });
// @ts-expect-error lse is missing
await attention.backward({ shape, q, k: q, v: q, o, dO: o });
// @ts-expect-error bytes are no tensor
await attention.upload(new Uint8Array(4));
// @ts-expect-error there is no such code
const none: AttentionErrorCode = 'oops';

export { bound, brainBack, chances, code, device, dq, fromExported, none, read, wordsBack, wrapped };
