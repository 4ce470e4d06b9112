// Half precision on devices without the f16 feature: two elements in a word, the first in its low half.
alias Quad = vec2<u32>;

fn decode_quad(stored: Quad) -> vec4<f32> { return vec4<f32>(unpack2x16float(stored.x), unpack2x16float(stored.y)); }
fn encode_quad(value: vec4<f32>) -> Quad { return vec2<u32>(pack2x16float(value.xy), pack2x16float(value.zw)); }
fn decode_half(half: u32) -> f32 { return unpack2x16float(half).x; }
fn encode_half(value: f32) -> u32 { return pack2x16float(vec2<f32>(value, 0.0)); }
