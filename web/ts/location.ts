/** @internal Where the WebAssembly module is if nothing else is said. In these very words, which bundlers look for. */
export function besideThis(): URL {
  return new URL('./wasm_bg.wasm', import.meta.url);
}
