// One tile of K or of V; the kernels hold the two one after the other.
const V_CHUNK_QUADS = THREAD_QUADS * KEY_LANES;
const KV_STRIDE = max(K_CHUNK_QUADS, V_CHUNK_QUADS) | 1u;

var<workgroup> kv_tile: array<vec4<f32>, TILE_KV * KV_STRIDE>;
