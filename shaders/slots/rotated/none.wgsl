fn rotated(first: u32, dim: u32, token: Token) -> f32 { return source_at(first + dim); }
