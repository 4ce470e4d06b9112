// One tile of K or of V in standard attention. LANES = TILE_KV / 4: an invocation owns four neighbouring keys.
const V_CHUNK_QUADS = THREAD_QUADS * LANES;
const KV_STRIDE = max(K_CHUNK_QUADS, V_CHUNK_QUADS) | 1u;

var<workgroup> kv_tile: array<vec4<f32>, TILE_KV * KV_STRIDE>;
