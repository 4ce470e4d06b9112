//! Numbers in messages.

/// All digits of a number.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn shown(number: impl std::fmt::Display) -> String {
    number.to_string()
}

/// A number in six digits after the point: what writes all digits would be a twentieth of a browser's download.
#[cfg(target_arch = "wasm32")]
pub(crate) fn shown(number: impl Into<f64>) -> String {
    in_six_digits(number.into())
}

#[cfg(any(test, target_arch = "wasm32"))]
fn in_six_digits(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    let sign = if number < 0.0 { "-" } else { "" };
    if number.abs() > 1e12 {
        return format!("{sign}{}", if number.is_finite() { "1000000000000 and more" } else { "inf" });
    }
    let millionths = (number.abs() * 1e6).round() as u64;
    let digits = format!("{sign}{}.{:06}", millionths / 1_000_000, millionths % 1_000_000);
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_digits() {
        for number in
            [0.0, 1.0, -1.0, 10.0, 100.0, 0.5, -0.25, 1.000_001, 1e12, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
        {
            assert_eq!(in_six_digits(number), shown(number));
        }
        assert_eq!(in_six_digits(-1e300), "-1000000000000 and more");
        assert_eq!(in_six_digits(0.1f32.into()), "0.1");
        assert_eq!(in_six_digits(1e-9), "0");
    }
}
