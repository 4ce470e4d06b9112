fn source_at(index: u32) -> f32 { return bitcast<f32>(source_word(index)); }
