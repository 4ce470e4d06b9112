// Dimensions m and m + ROTARY_DIM / 2 are pair m.
fn pair_of(dim: u32) -> u32 { return dim % (ROTARY_DIM / 2u); }
fn partner_of(dim: u32) -> u32 { return (dim + ROTARY_DIM / 2u) % ROTARY_DIM; }
fn is_second(dim: u32) -> bool { return dim >= ROTARY_DIM / 2u; }
