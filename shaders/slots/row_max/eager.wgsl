// The row maximum of a tile is taken in the turn that computes S, and P = exp(S − m) in the next one.
const HAS_ROW_MAXIMA = true;
