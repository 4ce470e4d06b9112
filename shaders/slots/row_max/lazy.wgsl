// P = exp(S − m) is taken in the turn that computes S, with the m that is there: no maxima in the loop. Only where the
// P of a row add up to more than P_SUM_MOST do all rows take their maxima, m follows, and P is taken anew. f16 holds
// numbers up to 65504.
const P_SUM_MOST = 32768.0;

// An invocation's part of P until the next turn, without what is dropped; rowsum(P) with it.
struct Held { low: vec4<f16>, high: vec4<f16>, sum: f32 }

fn taken(s: Eight, factor: f32, m: f32, is_masked: bool, at: Cell) -> Held {
  var p = probabilities(s, factor, m);
  if is_masked { p = without_masked(p, s); }
  let sum = sum_of(p);
  if HAS_DROPOUT { p = only(kept_of(at), p, 0.0); }
  return Held(as_half(p.low), as_half(p.high), sum);
}

// So are an infinity and NaN.
fn is_too_much(sum: f32) -> bool { return !(sum <= P_SUM_MOST); }

fn lefts_held(mine: Mine, p: Held) -> Lefts {
  p_tile_half[mine.p] = p.low;
  p_tile_half[mine.p + HIGH / 4u] = p.high;
  return lefts(mine);
}
