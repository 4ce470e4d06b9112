// P = exp(S − m) is taken in the turn that computes S, with the m that is there: rows need no maximum. Only where P of
// a tile add up to more than P_SUM_MOST does m follow, and P is taken anew. So P fits f16, whose largest is 65504.
const HAS_ROW_MAXIMA = false;
const P_SUM_MOST = 32768.0; // 2¹⁵

// What an invocation has of a row's sum: infinities and NaN are too much too.
fn has_outgrown(sum: f32) -> bool { return !(sum <= P_SUM_MOST); }

// An invocation's part of P until the next turn.
struct Held { low: vec4<f16>, high: vec4<f16> }
fn held(p: Eight) -> Held { return Held(as_half(p.low), as_half(p.high)); }
fn lefts_held(mine: Mine, p: Held) -> Lefts {
  p_tile_half[mine.p] = p.low;
  p_tile_half[mine.p + HIGH / 4u] = p.high;
  return lefts(mine);
}
