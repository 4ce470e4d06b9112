//! Values as bytes of an element type, little-endian as in safetensors and on the GPU.

use half::{bf16, f16};
use wgpu_flash_attention::{Element, ElementType};

/// For elements that the library has got since: this program lists them all.
pub fn unknown(element: Element) -> ! {
    unreachable!("this program knows nothing of {}", element.name())
}

/// The bytes of the nearest values.
pub fn encode(element: Element, values: impl Iterator<Item = f64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.size_hint().0.saturating_mul(element.size() as usize));
    match element {
        Element::F32 => values.for_each(|value| bytes.extend_from_slice(&f32::from_f64(value).to_le_bytes())),
        Element::F16 => {
            values.for_each(|value| bytes.extend_from_slice(&<f16 as ElementType>::from_f64(value).to_le_bytes()))
        }
        Element::Bf16 => {
            values.for_each(|value| bytes.extend_from_slice(&<bf16 as ElementType>::from_f64(value).to_le_bytes()))
        }
        other => unknown(other),
    }
    bytes
}

/// The values, exactly. The bytes may lie at any address.
pub fn decode(element: Element, bytes: &[u8]) -> impl Iterator<Item = f64> {
    bytes.chunks_exact(element.size() as usize).map(move |bytes| match element {
        Element::F32 => f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        Element::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
        Element::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
        other => unknown(other),
    })
}

/// The largest relative error of rounding to nearest: half the distance from 1 to the next value.
pub fn unit_roundoff(element: Element) -> f64 {
    match element {
        Element::F32 => 2f64.powi(-24),
        Element::F16 => 2f64.powi(-11),
        Element::Bf16 => 2f64.powi(-8),
        other => unknown(other),
    }
}

/// The largest |value − expected|; infinite when only one of the two is finite or a NaN is not expected.
pub fn largest_error(values: impl IntoIterator<Item = f64>, expected: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().zip(expected).map(|(value, expected)| error(value, expected)).fold(0.0, f64::max)
}

/// |value − expected|, 0 for equal infinities, infinite for everything else that has no difference.
pub fn error(value: f64, expected: f64) -> f64 {
    if value == expected {
        return 0.0;
    }
    let difference = (value - expected).abs();
    if difference.is_nan() { f64::INFINITY } else { difference }
}
