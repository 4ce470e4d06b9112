//! Rotary embeddings of a GGUF file: the dimensions 2i and 2i + 1 of a head are a pair and turn by
//! position · theta^(−2i / head_dim). The file has the rows of Wq and Wk in an order that makes neighbours pairs.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};
use wgpu_flash_attention_burn::{Rotary, RotaryPairs};

/// cos and sin of all positions.
pub struct Angles {
    /// As Burn's operations multiply: `[capacity, head_dim]` in f32, the sine with the sign that it has in the rotation.
    cos: Tensor<2>,
    sin: Tensor<2>,
    /// As a cache takes them, which turns K and Q where it writes K.
    of_pairs: Rotary,
}

impl Angles {
    pub fn new(capacity: usize, head_dim: usize, theta: f64, device: &Device) -> Self {
        let half = head_dim / 2;
        let angle = |position: usize, pair: usize| position as f64 * theta.powf(-2.0 * pair as f64 / head_dim as f64);
        let table = |width: usize, value: &dyn Fn(usize, usize) -> f64| {
            let values = (0..capacity * width).map(|index| value(index / width, index % width) as f32).collect();
            Tensor::from_data(TensorData::new::<f32, _>(values, [capacity, width]), (device, DType::F32))
        };
        let sign = |dim: usize| if dim.is_multiple_of(2) { -1.0 } else { 1.0 };
        Self {
            cos: table(head_dim, &|position, dim| angle(position, dim / 2).cos()),
            sin: table(head_dim, &|position, dim| sign(dim) * angle(position, dim / 2).sin()),
            of_pairs: Rotary {
                cos: table(half, &|position, pair| angle(position, pair).cos()),
                sin: table(half, &|position, pair| angle(position, pair).sin()),
                pairs: RotaryPairs::Interleaved,
            },
        }
    }

    /// Those of some positions, for all layers.
    pub fn at(&self, positions: Range<usize>) -> AnglesOfRows<'_> {
        let of_rows = |table: &Tensor<2>| table.clone().slice(positions.clone()).unsqueeze_dim::<3>(1);
        AnglesOfRows { cos: of_rows(&self.cos), sin: of_rows(&self.sin), of_pairs: &self.of_pairs }
    }
}

/// cos and sin of a call's rows.
pub struct AnglesOfRows<'a> {
    /// `[rows, 1, head_dim]`.
    cos: Tensor<3>,
    sin: Tensor<3>,
    /// Of all positions: a cache knows its own.
    pub of_pairs: &'a Rotary,
}

impl AnglesOfRows<'_> {
    /// Q or K `[rows, heads, head_dim]`: of each pair (a, b), (a cos − b sin, b cos + a sin), in f32.
    pub fn turn(&self, x: Tensor<3>) -> Tensor<3> {
        let ([rows, heads, dim], element) = (x.dims(), x.dtype());
        let x = x.cast(DType::F32);
        let swapped = x.clone().reshape([rows, heads, dim / 2, 2]).flip([3]).reshape([rows, heads, dim]);
        let turned = x * self.cos.clone() + swapped * self.sin.clone();
        turned.cast(element)
    }
}
