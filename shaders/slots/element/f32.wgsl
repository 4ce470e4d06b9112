alias Quad = vec4<f32>;
alias Single = f32;

fn decode_quad(stored: Quad) -> vec4<f32> { return stored; }
fn encode_quad(value: vec4<f32>) -> Quad { return value; }
fn decode_single(stored: Single) -> f32 { return stored; }
fn encode_single(value: f32) -> Single { return value; }
