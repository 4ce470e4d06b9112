// A sink: a logit for each query head that joins the sum of each row and has no value, so O shrinks.

@group(0) @binding(BINDING_sink) var<storage, read> sink: array<f32>;

// The logit of a head of the whole problem, in units of log2(e); MASKED stands for −∞.
fn sink_of(head: u32) -> f32 {
  let logit = sink[params.sink_offset + head];
  // Bits of negative numbers rise towards −∞. Compilers may turn a comparison into `max`, which loses NaN.
  let bits = bitcast<u32>(logit);
  return select(logit * LOG2_E, MASKED, bits > bitcast<u32>(-2.0e38) && bits <= 0xff800000u);
}
