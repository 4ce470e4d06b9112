// Every invocation owns whole rows and needs all quads of K and V. The invocations of a subgroup load one quad each,
// and each quad is then broadcast to all of them. This is for software drivers, which load element by element for each
// invocation.

fn place_of(invocation: u32, load: u32) -> u32 { return invocation % BROADCAST + load * BROADCAST; }

fn quad_of(invocation: u32, load: u32, part: u32) -> u32 { return load * BROADCAST + part; }

// unroll B in BROADCAST {
  fn part_B(loaded: vec4<f32>) -> vec4<f32> { return subgroupBroadcast(loaded, B); }
// }
