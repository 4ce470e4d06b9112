//! Two runs give the same bits.

use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Call, Element};

use crate::support::{Variant, inputs, library, run, run_calls};

const REPEATS: usize = 50;

#[test]
fn fifty_runs_are_identical() {
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        for element in [Element::F32, Element::F16] {
            let shape = AttentionShape::new(2, 4, 70, 32).with_num_heads_kv(2).with_seqlen_kv(90);
            let problem = AttentionProblem::new(shape)
                .with_element(element)
                .with_causal()
                .with_dropout(0.3, 17)
                .with_algorithm(algorithm);
            let inputs = inputs(&problem, 1);
            let mut outputs = run_calls(library(Variant::Full), &problem, &inputs, &vec![Call::default(); REPEATS / 2]);
            // The other half with a submission, and buffers, of its own each.
            outputs.extend((0..REPEATS / 2).map(|_| run(library(Variant::Full), &problem, &inputs)));
            for (n, output) in outputs.iter().enumerate() {
                assert!(*output == outputs[0], "{algorithm:?} {element:?}: run {n} differs from the first");
            }
        }
    }
}
