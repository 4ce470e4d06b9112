//! The WebAssembly side of the npm package: problems, plans and the encoding of their dispatches, over the crate and
//! wgpu's WebGPU backend.
//!
//! Tensors never pass through here. The TypeScript side owns every `GPUBuffer`, fills and reads it by itself, and
//! lends it to wgpu as a [`Tensor`](tensor::Tensor). What WebAssembly's numbers cannot say (fractions, negative
//! lengths, `NaN` where a whole number belongs) is refused there too.

#![cfg(target_arch = "wasm32")]

mod attention;
mod error;
mod problem;
mod tensor;

use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    /// Tells the TypeScript side (`web/ts/view.ts`) that what waits for this module waits in vain.
    fn broken(panic: &str);
}

/// Runs once, when the module is loaded: what would be a bare `unreachable` then says what broke.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|panic| {
        broken(&panic.to_string());
        wasm_bindgen::throw_str(&panic.to_string())
    }));
}
