fn source_at(index: u32) -> f32 { return unpack2x16float(source_word(index / 2u) >> (16u * (index & 1u))).x; }
