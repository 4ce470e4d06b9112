// Half precision on devices with the f16 feature.
alias Quad = vec4<f16>;
alias Single = f16;

fn decode_quad(stored: Quad) -> vec4<f32> { return vec4<f32>(stored); }
fn encode_quad(value: vec4<f32>) -> Quad { return vec4<f16>(value); }
fn decode_single(stored: Single) -> f32 { return f32(stored); }
fn encode_single(value: f32) -> Single { return f16(value); }
