// sums += terms, in f32: gradients that came from another rank, and this rank's. An invocation adds one number.

@group(0) @binding(0) var<storage, read> terms: array<f32>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(256)
fn add(@builtin(global_invocation_id) invocation: vec3<u32>) {
    if invocation.x < arrayLength(&sums) {
        sums[invocation.x] = terms[invocation.x] + sums[invocation.x];
    }
}
