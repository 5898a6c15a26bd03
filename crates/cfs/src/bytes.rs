//! Amounts of bytes as people write and read them.

use std::num::NonZeroU64;

/// Bytes from `4096`, `64K`, `10M`, `2GiB`, `1TB`: one letter and `iB` count in 1024s, `KB`, `MB`, .. in 1000s.
///
/// # Errors
/// A sentence for the command line.
pub fn parse(text: &str) -> Result<u64, String> {
    let malformed =
        || format!("'{text}' is no amount of bytes; write for example 4096, 64M or 10GiB");
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| malformed())?;
    let unit = text[digits..].trim().to_ascii_lowercase();
    let (letter, base) = match unit.as_str() {
        "" | "b" => return Ok(number),
        unit if unit.len() == 1 => (unit.as_bytes()[0], 1024_u64),
        unit if unit.len() == 3 && unit.ends_with("ib") => (unit.as_bytes()[0], 1024),
        unit if unit.len() == 2 && unit.ends_with('b') => (unit.as_bytes()[0], 1000),
        _ => return Err(malformed()),
    };
    let power = match letter {
        b'k' => 1,
        b'm' => 2,
        b'g' => 3,
        b't' => 4,
        b'p' => 5,
        _ => return Err(malformed()),
    };
    base.checked_pow(power)
        .and_then(|factor| number.checked_mul(factor))
        .ok_or_else(|| format!("'{text}' is more than 16 EiB"))
}

/// As [`parse`], with or without `/s` behind it, and not zero.
///
/// # Errors
/// A sentence for the command line.
pub fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let rate = parse(text.strip_suffix("/s").unwrap_or(text))?;
    NonZeroU64::new(rate).ok_or_else(|| format!("with '{text}' it would never end"))
}

/// `1.5 GiB`; three digits that count, exact below 1 KiB.
#[must_use]
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// `1,234,567`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1024),
            ("1kb", 1000),
            ("3MiB", 3 << 20),
            ("2 g", 2 << 30),
            ("1TB", 1_000_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1X", "1KiBs", "99999999999P", "1é"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_are_shown() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            (1023 << 20, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(show(bytes), text);
        }
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
    }
}
