// Parts of O in the element type of O: partial results of the caller.

fn load_part(index: u32, valid: u32) -> vec4<f32> { return decode(load_o_parts(index, valid)); }
