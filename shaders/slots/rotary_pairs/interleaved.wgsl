// Dimensions 2m and 2m + 1 are pair m.
fn pair_of(dim: u32) -> u32 { return dim / 2u; }
fn partner_of(dim: u32) -> u32 { return dim ^ 1u; }
fn is_second(dim: u32) -> bool { return (dim & 1u) == 1u; }
