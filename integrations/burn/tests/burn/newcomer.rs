//! The lines that a newcomer adds to a Burn program. The README and docs/autograd.md show them.

use burn::tensor::{Distribution, Tensor};

use crate::support::device;

#[test]
fn five_lines() {
    let device = device().autodiff(); // In a program: wgpu_flash_attention_burn::init()?.autodiff()
    let q = Tensor::<4>::random([1, 2, 16, 32], Distribution::Default, &device).require_grad();
    use wgpu_flash_attention_burn::{AttentionOptions, attention};
    let options = AttentionOptions::new().with_causal();
    let output = attention(q.clone(), q.clone(), q.clone(), &options).unwrap();
    let gradients = output.o.sum().backward();
    assert_eq!(q.grad(&gradients).unwrap().dims(), [1, 2, 16, 32]);
}
