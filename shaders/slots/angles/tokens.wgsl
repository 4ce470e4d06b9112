// The tables have a row for each new token.
fn angles_of(token: Token) -> u32 { return number_of(token); }
