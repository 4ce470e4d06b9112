// Parts of O in the element type of O, as the caller's own partial results are.

fn load_part(index: u32, valid: u32) -> vec4<f32> { return decode(load_o_parts(index, valid)); }
