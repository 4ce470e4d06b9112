//! How far from the oracle an answer may be: for each element, the most that rounding in a kernel can do to it.
//!
//! The oracle computes a bound from what it knows of an element: the terms of its sums, the size of partial sums, and what
//! cancels. Two rules make the constants. Roundings of fixed number count at their worst. Roundings whose number grows with
//! a sum do not all go one way: n of them count as √n, times [`SPREAD`].
//!
//! With U = 2⁻²⁴, the unit roundoff of f32, and ε(Σ) the rounding of a sum ([`Sum::rounding`]), in units of U:
//!
//! | | errs by |
//! |---|---|
//! | S_ij | ε(Σ scale · q · k) + 2 · \|S_ij\|: the sum; scale in f32, and its product with q |
//! | P_ij, relative | S_ij's + 4 + 2 · \|S_ij − LSE_i\|: exp2 (two units in the last place on NVIDIA) and its argument |
//! | P_ij, from an LSE in f32 | P_ij · (P_ij's + 3 · \|LSE_i\|): LSE rounded, and in other units |
//! | O_id | Σ_j P_ij's · \|f V_jd − O_id\| + ε(Σ_j f P V) + ε(Σ_j P) · \|O\| + 8 · \|O\|: P's errors go into numerator and sum; the division |
//! | LSE_i | Σ_j P_ij's · P_ij + ε(Σ_j P) + 4 · (1 + ln n) + 3 · \|LSE\|: log2 of a sum of up to n, its sum with the maximum, and ln 2 |
//! | dV_jd | Σ_i f P_ij · \|dO_id\| · (P_ij's + 3 · \|LSE_i\|) + ε(Σ_i f P dO) + 4 · \|dV\|: LSE given in f32, and in other units |
//! | dS_ij | \|dS_ij\| · (P_ij's + 2) + P_ij · f · (ε(Σ dO · V) + 2 · \|dP_ij\|) + P_ij · ε(D_i): dP − D cancels, its errors do not |
//! | dQ_id | Σ_j scale · dS_ij's · \|K_jd\| + ε(Σ_j dS K) + 4 · \|dQ\|; what is common to a row, ε(D_i) and 3 · \|LSE_i\|, meets sums, not their sizes |
//! | dBias | as dK, with 1 in place of scale · Q; sums go over all scores that share the entry |
//! | dK_jd | Σ_i scale · (dS_ij's + 3 · \|LSE_i dS_ij\|) · \|Q_id\| + ε(Σ_i dS Q) + 4 · \|dK\| |
//!
//! f is 0 for what dropout drops, and its factor for what it keeps. [`Arithmetic`] says what kernels on cooperative matrices
//! and kernels that merge parts add. The rounding of the stored value is not in a bound: [`error_before_storing`] subtracts
//! it from the error.

mod backward;
mod forward;
mod probabilities;
mod terms;

pub use backward::{BackwardErrors, backward_errors};
pub use forward::{ForwardErrors, forward_errors};
pub use probabilities::probabilities_errors;
pub use terms::{Arithmetic, ErrorTerms, error_before_storing};
