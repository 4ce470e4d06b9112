import { AttentionError } from './errors.js';
import init from './wasm.js';

/** Where the WebAssembly module comes from. */
export type WasmSource = string | URL | BufferSource | Response | WebAssembly.Module;

/** @internal Loads the module, once for the page. */
export async function load(source: WasmSource | undefined): Promise<void> {
  // In these very words, which bundlers look for.
  const module_or_path = source ?? new URL('./wasm_bg.wasm', import.meta.url);
  try {
    await init({ module_or_path });
  } catch (error) {
    const place = typeof module_or_path === 'string' || module_or_path instanceof URL ? ` from ${module_or_path}` : '';
    throw new AttentionError(`wasm_bg.wasm could not be loaded${place} (${String(error)}); serve the file beside the package's ` +
      'scripts, or pass its address as FlashAttention.create({ wasm })');
  }
}
