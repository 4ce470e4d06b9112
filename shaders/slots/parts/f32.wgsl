// Parts of O in f32, for every element type. `valid` (at least 1) says how many dimensions are left in the row.

@group(0) @binding(BINDING_o_parts) var<storage, read> o_parts: array<f32>;

fn load_part(index: u32, valid: u32) -> vec4<f32> {
  let last = valid - 1u;
  return vec4<f32>(
    o_parts[index],
    o_parts[index + min(1u, last)],
    o_parts[index + min(2u, last)],
    o_parts[index + min(3u, last)],
  );
}
