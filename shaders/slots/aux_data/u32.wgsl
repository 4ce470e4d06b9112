// The data of functions in the caller's own WGSL, in u32. An index past the end reads the last entry.

@group(0) @binding(BINDING_aux) var<storage, read> aux: array<u32>;

fn wgsl_aux(index: u32) -> u32 { return aux[min(index, arrayLength(&aux) - 1u)]; }
