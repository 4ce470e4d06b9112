// Every invocation loads the quads of K and V that it needs.

// Where the quad of load number `load` stands in a row of a tile.
fn place_of(invocation: u32, load: u32) -> u32 { return invocation % LANES + load * LANES; }

// Which quad of a row the invocation has from part `part` of that load.
fn quad_of(invocation: u32, load: u32, part: u32) -> u32 { return place_of(invocation, load); }

fn part_0(loaded: vec4<f32>) -> vec4<f32> { return loaded; }
