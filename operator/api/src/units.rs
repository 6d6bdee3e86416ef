//! Numbers as custom resources write them: lengths of time and decimals are strings (the API has no floats).

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a length of time looks like in a schema: one to four numbers with a unit, as Gateway API writes them.
pub const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// What an amount of memory looks like in a schema.
pub const MEMORY_PATTERN: &str = r"^[1-9][0-9]{0,5}(\.[0-9]{1,3})?(M|G|T|Mi|Gi|Ti)$";
/// What a decimal looks like in a schema.
pub const DECIMAL_PATTERN: &str = r"^[0-9]{1,3}(\.[0-9]{1,9})?$";

/// A length of time as text: `10ms`, `5m`, `1h30m`. It ends at hours, as CEL's `duration()` does: a week is `168h`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(pub String);

/// The text is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no length of time: write a number with a unit, for example 10ms, 30s, 5m, 1h30m or 168h")]
pub struct NoDuration(String);

impl Duration {
    /// The length in milliseconds.
    pub fn milliseconds(&self) -> Result<i64, NoDuration> {
        parse_milliseconds(&self.0).ok_or_else(|| NoDuration(shortened(&self.0)))
    }
}

impl From<&str> for Duration {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn parse_milliseconds(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0i64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: i64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = match rest.get(..letters)? {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        rest = rest.get(letters..)?;
        total = total.checked_add(number.checked_mul(unit)?)?;
    }
    Some(total)
}

/// A decimal number as text: `0.95`, `1.2`. No sign, no exponent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

/// The text is no decimal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no decimal: write digits with at most one point, for example \"0.95\"")]
pub struct NoDecimal(String);

impl Decimal {
    /// The number; always finite and not negative.
    pub fn number(&self) -> Result<f64, NoDecimal> {
        let text = self.0.as_str();
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits =
            |part: &str, most| !part.is_empty() && part.len() <= most && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole, 3) || !digits(fraction, 9) {
            return Err(NoDecimal(shortened(text)));
        }
        text.parse().map_err(|_| NoDecimal(shortened(text)))
    }
}

impl From<&str> for Decimal {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An amount of memory as text, as Kubernetes writes quantities: `512Mi`, `4Gi`, `1.5G`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Memory(pub String);

/// The text is no amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no amount of memory: write a number of at least 1 with M, G, T, Mi, Gi or Ti, for example 4Gi")]
pub struct NoMemory(String);

impl Memory {
    /// The amount in bytes, at least a million and below 2^60; a fraction of a byte is dropped.
    pub fn bytes(&self) -> Result<u64, NoMemory> {
        parse_bytes(&self.0).ok_or_else(|| NoMemory(shortened(&self.0)))
    }
}

impl From<&str> for Memory {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &text[digits.len()..] {
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |part: &str, most| !part.is_empty() && part.len() <= most && part.bytes().all(|b| b.is_ascii_digit());
    if !plain(whole, 6) || !plain(fraction, 3) || whole.starts_with('0') {
        return None;
    }
    // Thousandths: exact, and at most 10^9 * 2^40, below 2^70, so the product is taken in 128 bits.
    let thousandths: u64 = format!("{whole}{fraction:0<3}").parse().ok()?;
    u64::try_from(u128::from(thousandths) * u128::from(factor) / 1000).ok()
}

/// Refused text is shown again, but never at any length.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(feature = "crd")]
mod schema {
    use super::{DECIMAL_PATTERN, DURATION_PATTERN, Decimal, Duration, MEMORY_PATTERN, Memory};
    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
    use std::borrow::Cow;

    impl JsonSchema for Duration {
        fn inline_schema() -> bool {
            true
        }
        fn schema_name() -> Cow<'static, str> {
            "Duration".into()
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({"type": "string", "pattern": DURATION_PATTERN, "maxLength": 28})
        }
    }

    impl JsonSchema for Memory {
        fn inline_schema() -> bool {
            true
        }
        fn schema_name() -> Cow<'static, str> {
            "Memory".into()
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({"type": "string", "pattern": MEMORY_PATTERN, "maxLength": 12})
        }
    }

    impl JsonSchema for Decimal {
        fn inline_schema() -> bool {
            true
        }
        fn schema_name() -> Cow<'static, str> {
            "Decimal".into()
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": 13})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        for (text, milliseconds) in
            [("10ms", 10), ("5m", 300_000), ("1h", 3_600_000), ("168h", 604_800_000), ("1h30m", 5_400_000), ("0s", 0)]
        {
            assert_eq!(Duration::from(text).milliseconds(), Ok(milliseconds), "{text}");
        }
        for text in
            ["", "5", "m", "5 m", "-5m", "1.5h", "7d", "5y", "99999999999999999999h", "9223372036854775807h", "ä", "5ä"]
        {
            assert!(Duration::from(text).milliseconds().is_err(), "{text}");
        }
    }

    #[test]
    fn decimals_are_read() {
        for (text, number) in [("0.95", 0.95), ("1", 1.0), ("1.2", 1.2), ("0.000000001", 1e-9), ("999", 999.0)] {
            assert_eq!(Decimal::from(text).number(), Ok(number), "{text}");
        }
        for text in
            ["", ".", "1.", ".5", "-1", "+1", "1e3", "NaN", "inf", "1000", "0.1234567890", "1,2", "0x1", "1.2.3"]
        {
            assert!(Decimal::from(text).number().is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_of_memory_are_read() {
        for (text, bytes) in [
            ("1M", 1_000_000),
            ("512Mi", 512 << 20),
            ("4Gi", 4 << 30),
            ("1.5G", 1_500_000_000),
            ("1.001Mi", 1_049_624),
            ("999999Ti", 999_999 << 40),
        ] {
            assert_eq!(Memory::from(text).bytes(), Ok(bytes), "{text}");
        }
        for text in
            ["", "4", "Gi", "0Gi", "0.5Gi", "-1Gi", "4GB", "4 Gi", "4gi", "1e3M", "1000000Ti", "1.Gi", "1.2345Gi", "Ä"]
        {
            assert!(Memory::from(text).bytes().is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_never_repeats_a_long_text() {
        let error = Duration("x".repeat(10_000)).milliseconds().unwrap_err();
        assert!(error.to_string().len() < 200);
    }
}
