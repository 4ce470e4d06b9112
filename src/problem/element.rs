use half::{bf16, f16};

/// The type that Q, K, V and O are stored in. Every product is summed in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// 32-bit floats.
    #[default]
    F32,
    /// IEEE half precision. It works with and without the device's f16 feature.
    F16,
    /// bfloat16, the upper half of an f32.
    Bf16,
}

impl Element {
    /// All element types.
    pub const ALL: &[Element] = &[Element::F32, Element::F16, Element::Bf16];

    /// Bytes of one element.
    pub const fn size(self) -> u64 {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    /// The nearest value of this type.
    pub fn round(self, value: f64) -> f64 {
        match self {
            Element::F32 => f64::from(value as f32),
            Element::F16 => <f16 as ElementType>::from_f64(value).to_f64(),
            Element::Bf16 => <bf16 as ElementType>::from_f64(value).to_f64(),
        }
    }

    /// The name used by the CLI and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
        }
    }
}

pub(super) mod sealed {
    pub trait Sealed {}
}

/// A Rust type that stands for an [`Element`]: `f32`, `half::f16` or `half::bf16`.
pub trait ElementType: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// The element it stands for.
    const ELEMENT: Element;
    /// The value, exactly.
    fn to_f64(self) -> f64;
    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
}

/// Rounds to odd: a value that is not an f32 becomes the neighbour whose last bit is set. Rounding this to fewer bits gives
/// the same as rounding the value itself. (half 2.7 drops the low 32 bits of an f64 before it rounds, so values just above
/// the middle of two neighbours become ties.)
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if nearest.is_nan() || f64::from(nearest) == value || nearest.to_bits() & 1 == 1 {
        return nearest;
    }
    let is_below = f64::from(nearest).abs() < value.abs();
    f32::from_bits(if is_below { nearest.to_bits() + 1 } else { nearest.to_bits() - 1 })
}

macro_rules! element_type {
    ($type:ty, $element:ident, $to:expr, $from:expr) => {
        impl sealed::Sealed for $type {}
        impl ElementType for $type {
            const ELEMENT: Element = Element::$element;
            fn to_f64(self) -> f64 {
                $to(self)
            }
            fn from_f64(value: f64) -> Self {
                $from(value)
            }
        }
    };
}

element_type!(f32, F32, f64::from, |value| value as f32);
element_type!(f16, F16, f16::to_f64, |value| f16::from_f32(to_odd(value)));
element_type!(bf16, Bf16, bf16::to_f64, |value| bf16::from_f32(to_odd(value)));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_just_beside_the_middle_of_two_neighbours_is_no_tie() {
        // A unit in the last place at 1 is 2⁻⁷ in bf16 and 2⁻¹⁰ in f16.
        for (element, ulp) in [(Element::Bf16, 2f64.powi(-7)), (Element::F16, 2f64.powi(-10))] {
            let middle = 1.0 + ulp / 2.0;
            for sign in [1.0, -1.0] {
                assert_eq!(element.round(sign * middle), sign, "a tie, to even");
                assert_eq!(element.round(sign * (middle + ulp)), sign * (1.0 + 2.0 * ulp), "a tie, to even");
                for beside in [2f64.powi(-22), 2f64.powi(-40), 2f64.powi(-52)] {
                    assert_eq!(element.round(sign * (middle + beside)), sign * (1.0 + ulp), "{element:?} {beside:e}");
                    assert_eq!(element.round(sign * (middle - beside)), sign, "{element:?} {beside:e}");
                }
            }
            assert!(element.round(f64::NAN).is_nan());
            assert_eq!(element.round(1e300), f64::INFINITY);
            assert_eq!(element.round(-1e-300), 0.0);
        }
    }
}
