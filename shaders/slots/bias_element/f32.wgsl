// Entries of a bias in f32.

fn bias_entry(index: u32) -> f32 { return bitcast<f32>(bias[index]); }
