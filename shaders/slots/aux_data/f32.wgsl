// The data of functions in the caller's own WGSL, in f32. An index past the end reads the last entry.

@group(0) @binding(BINDING_aux) var<storage, read> aux: array<f32>;

fn wgsl_aux(index: u32) -> f32 { return aux[min(index, arrayLength(&aux) - 1u)]; }
