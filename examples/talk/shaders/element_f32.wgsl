// Four elements of a row, in f32.
alias Quad = vec4<f32>;

fn decode(quad: Quad) -> vec4<f32> {
  return quad;
}

fn encode(values: vec4<f32>) -> Quad {
  return values;
}
