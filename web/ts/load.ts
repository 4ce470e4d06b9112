import { AttentionError, InvalidOptionError, worded } from './errors.js';
import { describe } from './checks.js';
import { besideThis } from './location.js';
import init from './wasm.js';

/** Where the WebAssembly module comes from. */
export type WasmSource = string | URL | BufferSource | Response | WebAssembly.Module;

/** What is read if the caller names no source. */
let standard: () => WasmSource | Promise<WasmSource> = besideThis;
let loaded: Promise<WebAssembly.Module> | undefined;
let isReady = false;

/** @internal For the entries of this package that have the module elsewhere. */
export function useWasm(source: () => WasmSource | Promise<WasmSource>): void {
  standard = source;
}

/** @internal Loads the module, once for the page. A source that fails or never answers stands in nobody's way. */
export async function load(source: WasmSource | undefined): Promise<void> {
  if (isReady) return;
  let module: WebAssembly.Module;
  if (source === undefined) {
    loaded ??= Promise.resolve().then(standard).then(compile);
    loaded.catch(() => loaded = undefined);
    module = await loaded;
  } else {
    module = await compile(source);
  }
  if (!WebAssembly.Module.exports(module).some(({ name }) => name === 'attention_create')) {
    throw new AttentionError("the WebAssembly.Module is not wasm_bg.wasm of this package; leave wasm out, or pass that file's address");
  }
  try {
    await init({ module_or_path: module });
  } catch (error) {
    throw new AttentionError(`wasm_bg.wasm is of another version than the package's scripts (${worded(error)}); take both from one package`, { cause: error });
  }
  isReady = true;
}

/** @internal Refuses what is no source. */
export function checkSource(source: unknown): void {
  const isBytes = source instanceof ArrayBuffer || ArrayBuffer.isView(source);
  const isAddress = typeof source === 'string' || source instanceof URL;
  if (source === undefined || isBytes || isAddress || source instanceof WebAssembly.Module) return;
  if (typeof Response === 'function' && source instanceof Response) return;
  const advice = source instanceof Promise ? '; await it first' : '';
  throw new InvalidOptionError(`wasm is ${describe(source)}; pass an address, bytes, a Response or a WebAssembly.Module${advice}`);
}

async function compile(source: WasmSource): Promise<WebAssembly.Module> {
  const place = typeof source === 'string' || source instanceof URL ? ` from ${source}` : '';
  try {
    if (source instanceof WebAssembly.Module) return source;
    const given = place === '' ? source as BufferSource | Response : await fetch(source as string | URL);
    if (!('arrayBuffer' in given)) return await WebAssembly.compile(given);
    const type = given.headers.get('content-type') ?? 'no type';
    if (!given.ok) throw new Error(`the server answered ${given.status}`);
    if (type.startsWith('text/html')) throw new Error('the server sent a page of HTML');
    return await (type === 'application/wasm' ? WebAssembly.compileStreaming(given) : WebAssembly.compile(await given.arrayBuffer()));
  } catch (error) {
    const words = worded(error);
    const advice = /Content Security Policy|unsafe-eval|blocked by CSP/i.test(words)
      ? "add 'wasm-unsafe-eval' to script-src of the page's Content-Security-Policy"
      : "serve the file beside the package's scripts, or pass its address as FlashAttention.create({ wasm })";
    throw new AttentionError(`wasm_bg.wasm could not be loaded${place} (${words}); ${advice}`, { cause: error });
  }
}
