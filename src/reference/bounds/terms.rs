use crate::problem::Element;

/// The unit roundoff of f32: half the distance from 1 to the next value.
pub(super) const U: f64 = 1.0 / (1u64 << 24) as f64;

/// n roundings of up to half a unit in the last place of a partial sum, 0.41 · U of it in the mean, have the standard
/// deviation 0.41 · √(n/3) · U = 0.24 · √n · U of the last one where partial sums grow steadily, and less where terms cancel.
/// Five of those are what ten million elements reach; 1.5 · √n are six.
const SPREAD: f64 = 1.5;

/// √n stops to grow here, at 1,600 terms: kernels sum more of them in parts. O of a million keys is then right to
/// 2 · SPREAD · 40 · U, 7e-6, and not to the 1e-4 of a sum that drifts. Terms that are all alike are another matter: they
/// round the same way again and again ([`ALIKE`]).
const LONGEST: f64 = 40.0;

/// Equal terms, one after another, round to the same side while their partial sum stays between two powers of two: by half a
/// unit in the last place each at most. A sum that grows to L from n of them spends half of them above L / 2, a quarter above
/// L / 4, …: n · L · U · (1/2 + 1/8 + 1/32 + …).
const ALIKE: f64 = 2.0 / 3.0;

/// No sum of flash attention has more terms, but dK and dV on matrices, which add up 16 at a time: a million drift as 65,536 would
/// (`sums_of_equal_terms_do_not_drift`).
const LONGEST_SUM: f64 = 32_768.0;

/// Where f32 has no normal numbers left, and devices may flush to 0.
pub(super) const SMALLEST: f64 = f32::MIN_POSITIVE as f64;

/// How a kernel computes, as far as its errors depend on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arithmetic {
    /// The unit of the products over head dimensions, Q Kᵀ and dO Vᵀ.
    products: f64,
    /// What each term of P V, Pᵀ dO, dS K and dSᵀ Q may lose on its way through matrices.
    terms: f64,
    /// Whether keys are split, and the parts merged.
    merges: bool,
}

impl Arithmetic {
    /// f32 throughout.
    pub const F32: Self = Self { products: U, terms: 0.0, merges: false };

    /// On cooperative matrices that take Q, K, V and dO as they are, and P and dS rounded to f16: f16 and bf16 problems.
    /// Matrix units cut sums off where f32 rounds them, four times for one; and WGSL does not say to which side a value
    /// becomes f16: a whole unit in the last place, 2⁻¹⁰.
    pub const MATRICES: Self = Self { products: 4.0 * U, terms: 1.0 / 1024.0, merges: false };

    /// On cooperative matrices in two parts of f16: f32 problems. Each factor loses 2⁻²³ or less, their product the
    /// rest · rest of 2⁻²⁴, and the sum of 16 products or fewer is cut off: 2⁻²⁰ in all.
    pub const MATRICES_IN_PARTS: Self = Self { products: 4.0 * U, terms: 16.0 * U, merges: false };

    /// The same, where the keys are split and the parts merged: LSE and O of each part are rounded to f32, and parts are
    /// weighed by exp(LSE_s − LSE).
    pub const fn merging(self) -> Self {
        Self { merges: true, ..self }
    }
}

/// What bounds the error of one element, for every arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorTerms {
    /// From roundings in f32, in units of U.
    pub plain: f64,
    /// From products over head dimensions, in their unit.
    pub products: f64,
    /// The sum of the sizes of the element's terms, for arithmetic that loses a share of each.
    pub terms: f64,
    /// What f16 cannot hold beside the largest P or dS, for arithmetic that passes them through it.
    pub underflow: f64,
    /// From the weights of merged parts, in units of U.
    pub merge: f64,
    /// What flushing of subnormal numbers takes away.
    pub flushed: f64,
}

impl ErrorTerms {
    /// The most by which a kernel with this arithmetic may miss the oracle's element before it stores its own. 0 for rows
    /// that see nothing; NaN where the element itself is NaN.
    pub fn bound(&self, arithmetic: &Arithmetic) -> f64 {
        let Arithmetic { products, terms, merges } = *arithmetic;
        let of_matrices = if terms > 0.0 { terms * self.terms + self.underflow } else { 0.0 };
        let of_merge = if merges { U * self.merge } else { 0.0 };
        U * self.plain + products * self.products + of_matrices + of_merge + self.flushed
    }

    pub(super) fn scale(&mut self, factor: f64) {
        let all = [&mut self.plain, &mut self.products, &mut self.terms, &mut self.underflow, &mut self.merge];
        all.into_iter().for_each(|term| *term *= factor);
        self.flushed *= factor;
    }
}

/// A sum and how it went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    pub total: f64,
    /// The largest partial sum, in order.
    largest: f64,
    squares: f64,
    /// Σ of the terms' sizes.
    pub sizes: f64,
    pub count: f64,
    /// The last term, and how many terms are equal to the one before them.
    last: f64,
    alike: f64,
}

impl Sum {
    pub fn of(terms: impl Iterator<Item = f64>) -> Self {
        let mut sum = Self::default();
        terms.for_each(|term| sum.add(term));
        sum
    }

    pub fn add(&mut self, term: f64) {
        self.total += term;
        self.largest = self.largest.max(self.total.abs());
        self.squares += term * term;
        self.sizes += term.abs();
        self.count += 1.0;
        self.alike += if term == self.last && term != 0.0 { 1.0 } else { 0.0 };
        self.last = term;
    }

    /// The sum of terms that a kernel adds without rounding, since they are whole numbers there.
    pub fn without_drift(self) -> Self {
        Self { alike: 0.0, ..self }
    }

    /// Adds all terms of another sum behind those of this one.
    pub fn append(&mut self, other: &Sum) {
        self.largest = self.largest.max(self.total.abs() + other.largest);
        self.total += other.total;
        self.squares += other.squares;
        self.sizes += other.sizes;
        self.count += other.count;
        self.alike += other.alike;
        self.last = other.last;
    }

    /// The rounding of the sum in units of its arithmetic. Kernels add in other orders than this one, by tiles and by
    /// lanes: partial sums of terms in any order are about as large as the largest in this order, or as the root of
    /// the sum of squares, as a walk's.
    pub fn rounding(&self) -> f64 {
        let walk = SPREAD * self.count.sqrt().min(LONGEST) * (self.largest + self.squares.sqrt());
        walk + ALIKE * self.alike.min(LONGEST_SUM) * self.largest
    }
}

/// How far `found`, an element as it is stored, is from `expected` at least, if a kernel stored the nearest value to what
/// it had. 0 for equal infinities and for two NaNs, infinite where only one of the two is such.
pub fn error_before_storing(element: Element, found: f64, expected: f64) -> f64 {
    if found == expected || found.is_nan() && expected.is_nan() {
        return 0.0;
    }
    if found.is_nan() || expected.is_nan() || expected.is_infinite() {
        return f64::INFINITY;
    }
    // An infinity stands for everything past the middle of the largest value and the next that there would be.
    let found = if found.is_infinite() { found.signum() * overflow(element) } else { found };
    if found.abs() < expected.abs() && found.abs() >= overflow(element) && found.signum() == expected.signum() {
        return 0.0;
    }
    let half_unit = half_unit(element, found.abs().max(expected.abs()));
    ((found - expected).abs() - half_unit).max(0.0)
}

/// Bits of the significand, and exponents of the smallest and largest normal value.
fn format(element: Element) -> (i32, i32, i32) {
    match element {
        Element::F32 => (24, -126, 127),
        Element::F16 => (11, -14, 15),
        Element::Bf16 => (8, -126, 127),
    }
}

/// From here on values are rounded to an infinity.
fn overflow(element: Element) -> f64 {
    let (bits, _, largest) = format(element);
    2f64.powi(largest + 1) - 2f64.powi(largest - bits)
}

/// Half the distance between neighbours at `value`. (Kernels round from f32, of which devices may flush the smallest.)
fn half_unit(element: Element, value: f64) -> f64 {
    let (bits, smallest, largest) = format(element);
    let exponent = if value == 0.0 { smallest } else { (value.log2().floor() as i32).clamp(smallest, largest) };
    2f64.powi(exponent - bits).max(SMALLEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounds_to_an_element_has_no_error() {
        for &element in Element::ALL {
            for value in [1.0, -1.999, 2.7e-3 / 3.0, 0.0, 1e-5, -6e-8, 65503.0, 1e-45] {
                assert_eq!(error_before_storing(element, element.round(value), value), 0.0, "{element:?} {value}");
            }
            let overflowing = overflow(element) * 1.5;
            assert_eq!(error_before_storing(element, f64::INFINITY, overflowing), 0.0);
            assert!(error_before_storing(element, f64::INFINITY, overflowing / 4.0) > 0.0);
            assert_eq!(error_before_storing(element, f64::NAN, f64::NAN), 0.0);
            assert_eq!(error_before_storing(element, f64::NAN, 1.0), f64::INFINITY);
            assert_eq!(error_before_storing(element, 1.0, f64::NEG_INFINITY), f64::INFINITY);
        }
        // The neighbour in f16 of what 1.0 stands for.
        let next = 1.0 + 2f64.powi(-10);
        assert!(error_before_storing(Element::F16, next, 1.0) >= 2f64.powi(-11));
        assert_eq!(error_before_storing(Element::F32, 1.0 + 2f64.powi(-23), 1.0), 2f64.powi(-24));
    }

    #[test]
    fn a_sum_knows_its_way() {
        let sum = Sum::of([3.0, 1.0, -4.0, 0.5].into_iter());
        assert_eq!((sum.total, sum.largest, sum.squares, sum.sizes, sum.count), (0.5, 4.0, 26.25, 8.5, 4.0));
    }
}
