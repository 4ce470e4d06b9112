// Entries of a bias in f16, in pairs: no device feature is needed.

fn bias_entry(index: u32) -> f32 { return unpack2x16float(bias[index / 2u])[index % 2u]; }
