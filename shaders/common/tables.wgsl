// Small data that is no tensor. Word n says where table n starts.
@group(0) @binding(BINDING_tables) var<storage, read> tables: array<u32>;
