// P = exp(S − m) is taken in the turn that computes S, with the m that is there: no maxima in the loop. Only where some
// P add up to more than P_SUM_MOST, all rows take their maxima, m follows, and P is taken anew. f16 holds up to 65504.
const HAS_ROW_MAXIMA = false;
const P_SUM_MOST = 32768.0;

// An invocation's part of P until the next turn, without what is dropped; rowsum(P) with it.
struct Held { low: vec4<f16>, high: vec4<f16>, sum: f32 }

fn taken(s: Eight, factor: f32, m: f32, is_masked: bool, at: Cell) -> Held {
  let p = tile_probabilities(s, factor, m, is_masked);
  let kept = dropped(p, at);
  return Held(as_half(kept.low), as_half(kept.high), sum_of(p));
}

// So are an infinity and NaN.
fn is_too_much(sum: f32) -> bool { return !(sum <= P_SUM_MOST); }

fn lefts_held(mine: Mine, p: Held) -> Lefts {
  p_tile_half[mine.p] = p.low;
  p_tile_half[mine.p + HIGH / 4u] = p.high;
  return lefts(mine);
}
