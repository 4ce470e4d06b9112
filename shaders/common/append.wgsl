// A row of a new token: sequence, token and head, counted from the first of this dispatch.
struct Token {
  batch: u32,
  i: u32,
  head: u32,
}

// Where a row starts in the target, and whether it has a place there.
struct Place {
  first: u32,
  exists: bool,
}
