// The tables have a row for each position; positions behind the last take the last.
fn angles_of(token: Token) -> u32 { return min(position_of(token), params.rotary_positions - 1u); }
