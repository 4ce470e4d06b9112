// There is no score_mod_grad, and planning refuses gradients. The forward kernels never call this.

fn score_score_mod_gradient(gradient: vec4<f32>, score: vec4<f32>, cell: Cell) -> vec4<f32> { return vec4<f32>(0.0); }
