use half::{bf16, f16};

/// The type that Q, K, V and O are stored in. Every product accumulates in f32, whatever the storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32-bit floats.
    #[default]
    F32,
    /// IEEE half precision. Runs with and without the device's f16 feature.
    F16,
    /// bfloat16, the upper half of an f32.
    Bf16,
}

impl Element {
    /// All element types.
    pub const ALL: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

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
            Element::F16 => f16::from_f64(value).to_f64(),
            Element::Bf16 => bf16::from_f64(value).to_f64(),
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

mod sealed {
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
element_type!(f16, F16, f16::to_f64, f16::from_f64);
element_type!(bf16, Bf16, bf16::to_f64, bf16::from_f64);
