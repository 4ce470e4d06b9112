//! The words of WGSL that a text may use. All others are the text's own, or refused.

const KEYWORDS: &[&str] = &[
    "_",
    "break",
    "case",
    "const",
    "const_assert",
    "continue",
    "continuing",
    "default",
    "else",
    "false",
    "for",
    "if",
    "let",
    "loop",
    "return",
    "switch",
    "true",
    "var",
    "while",
];

/// Functions on numbers that every browser has.
const FUNCTIONS: &[&str] = &[
    "abs",
    "acos",
    "acosh",
    "all",
    "any",
    "arrayLength",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bitcast",
    "ceil",
    "clamp",
    "cos",
    "cosh",
    "countLeadingZeros",
    "countOneBits",
    "countTrailingZeros",
    "cross",
    "degrees",
    "determinant",
    "distance",
    "dot",
    "exp",
    "exp2",
    "extractBits",
    "faceForward",
    "firstLeadingBit",
    "firstTrailingBit",
    "floor",
    "fma",
    "fract",
    "frexp",
    "insertBits",
    "inverseSqrt",
    "ldexp",
    "length",
    "log",
    "log2",
    "max",
    "min",
    "mix",
    "modf",
    "normalize",
    "pack2x16float",
    "pack2x16snorm",
    "pack2x16unorm",
    "pack4x8snorm",
    "pack4x8unorm",
    "pow",
    "quantizeToF16",
    "radians",
    "reflect",
    "refract",
    "reverseBits",
    "round",
    "saturate",
    "select",
    "sign",
    "sin",
    "sinh",
    "smoothstep",
    "sqrt",
    "step",
    "tan",
    "tanh",
    "transpose",
    "trunc",
    "unpack2x16float",
    "unpack2x16snorm",
    "unpack2x16unorm",
    "unpack4x8snorm",
    "unpack4x8unorm",
];

pub(super) fn is_keyword(word: &str) -> bool {
    KEYWORDS.contains(&word)
}

pub(super) fn is_function(word: &str) -> bool {
    FUNCTIONS.contains(&word)
}

/// Why a word that is neither the text's nor allowed is refused.
pub(super) fn reason(word: &str) -> String {
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| word.starts_with(beginning));
    let reason = if word == "ptr" {
        super::POINTERS
    } else if word == "discard" || word.ends_with("Barrier") {
        "this statement is not allowed: no barriers, no atomics, no subgroups, no discard"
    } else if begins(&["subgroup", "quad", "workgroup"]) || begins(&["atomic"]) && word != "atomic" {
        "this operation is not allowed: no barriers, no atomics, no subgroups, no discard"
    } else if begins(&["dpdx", "dpdy", "fwidth", "textureS", "textureL", "textureG", "textureD", "textureN"]) {
        "this operation is not allowed; plain arithmetic on numbers is"
    } else if begins(&["texture_", "sampler", "binding_array", "atomic"])
        || matches!(word, "f16" | "f64" | "i16" | "u16" | "i64" | "u64")
    {
        "this type is not allowed; numbers, vectors, matrices, arrays and structs are"
    } else {
        return format!("no definition in scope for identifier: `{word}`");
    };
    reason.to_owned()
}

/// Whether a token that begins as a number is one of WGSL's, in f32, i32, u32 or without a type.
pub(super) fn is_number(text: &str) -> bool {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let is_digit = |c: char| if hex.is_some() { c.is_ascii_hexdigit() } else { c.is_ascii_digit() };
    let digits = |text: &str| text.find(|c| !is_digit(c)).unwrap_or(text.len());
    let body = hex.unwrap_or(text);
    let (whole, rest) = body.split_at(digits(body));
    let (has_point, rest) = rest.strip_prefix('.').map_or((false, rest), |rest| (true, rest));
    let (fraction, rest) = rest.split_at(if has_point { digits(rest) } else { 0 });
    if whole.is_empty() && fraction.is_empty()
        || hex.is_none() && whole.len() > 1 && whole.starts_with('0') && !has_point
    {
        return false;
    }
    let mark = if hex.is_some() { ['p', 'P'] } else { ['e', 'E'] };
    let exponent = rest.strip_prefix(mark);
    let rest = match exponent.map(|exponent| exponent.strip_prefix(['+', '-']).unwrap_or(exponent)) {
        Some(exponent) => match exponent.find(|c: char| !c.is_ascii_digit()).unwrap_or(exponent.len()) {
            0 => return false,
            end => &exponent[end..],
        },
        None => rest,
    };
    match rest {
        "" => true,
        "f" => hex.is_none() || exponent.is_some(),
        "i" | "u" => !has_point && exponent.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for number in
            ["0", "1", "12u", "7i", "0x1F", "0xffu", "1f", "1.0", "1.", ".5", "1e3", "1.5e-3f", "0x1p-2", "0x1.8p+1f"]
        {
            assert!(is_number(number), "{number}");
        }
        for number in
            ["01", "1h", "1lf", "1lu", "1.5u", "1e", "1e+", "0x", "0x1p", "1.2.3", "1x", "0xg", "1ef", "1.loop", "."]
        {
            assert!(!is_number(number), "{number}");
        }
    }

    /// A function of WGSL is that, and none of the library's: kernels give its name to nothing.
    #[test]
    fn kernels_hide_no_functions() {
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders"))];
        let mut names = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "wgsl") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
                    let declared =
                        words.windows(2).filter(|pair| matches!(pair[0], "fn" | "alias" | "struct" | "const"));
                    for name in declared.map(|pair| pair[1]) {
                        assert!(!is_function(name) && !is_keyword(name), "{}: {name}", path.display());
                        names += 1;
                    }
                }
            }
        }
        assert!(names > 100, "{names}");
    }
}
