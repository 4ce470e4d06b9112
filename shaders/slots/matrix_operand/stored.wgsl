// What was loaded is already what matrices take.
fn to_half(loaded: Loaded) -> vec4<f16> { return loaded; }
