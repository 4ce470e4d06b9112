// The rows of a Q tile are those of one head.

// Head and row of a row of the tile, counted from the first of this dispatch.
fn head_of(tile: QTile, row: u32) -> u32 { return tile.head; }
fn row_of(tile: QTile, row: u32) -> u32 { return row; }
