//! Durations and sizes as people write them.

use std::time::Duration;

/// The longest duration that is accepted: ten years, far from any overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

const DURATION_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads `500ms`, `25s`, `2m`, `1h30m` or `30d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "is not a duration such as \"25s\", \"500ms\", \"2m\" or \"1h30m\"";
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(FORM.to_owned());
    }
    let mut millis: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = split_number(rest).ok_or(FORM)?;
        let unit_len = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, remainder) = after.split_at(unit_len);
        if unit.is_empty() {
            return Err("has no unit; write \"25s\", \"500ms\", \"2m\" or \"1h\"".to_owned());
        }
        let (_, factor) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or(FORM)?;
        millis = number
            .checked_mul(*factor)
            .and_then(|part| millis.checked_add(part))
            .filter(|sum| *sum <= LONGEST.as_secs() * 1000)
            .ok_or("is longer than ten years")?;
        rest = remainder.trim_start();
    }
    Ok(Duration::from_millis(millis))
}

/// The shortest form that [`parse_duration`] reads back as the same duration.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    // Days are read but not written: "720h" is how retention is usually given.
    let (unit, factor) = DURATION_UNITS[1..]
        .iter()
        .find(|(_, factor)| millis.is_multiple_of(u128::from(*factor)))
        .expect("every number of milliseconds is a multiple of one");
    format!("{}{unit}", millis / u128::from(*factor))
}

/// Reads `64KiB`, `1MiB`, `2GiB`, `512B` or a plain number of bytes.
pub(super) fn parse_size(text: &str) -> Result<usize, String> {
    const FORM: &str = "is not a size such as 65536, \"64KiB\", \"1MiB\" or \"2GiB\"";
    let (number, unit) = split_number(text.trim()).ok_or(FORM)?;
    let factor = match unit.trim_start() {
        "" => 1,
        unit => SIZE_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or(FORM)?,
    };
    number.checked_mul(factor).and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| "is too large".to_owned())
}

/// The shortest form that [`parse_size`] reads back as the same size.
pub(super) fn show_size(bytes: usize) -> String {
    match SIZE_UNITS[..3].iter().find(|(_, factor)| bytes > 0 && (bytes as u64).is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes as u64 / factor),
        None => bytes.to_string(),
    }
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, millis, shown) in [
            ("25s", 25_000, "25s"),
            ("500ms", 500, "500ms"),
            ("2m", 120_000, "2m"),
            ("90s", 90_000, "90s"),
            ("1h", 3_600_000, "1h"),
            ("1h30m", 5_400_000, "90m"),
            ("30d", 2_592_000_000, "720h"),
            ("0s", 0, "0s"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(text), Ok(duration), "{text}");
            assert_eq!(show_duration(duration), shown);
            assert_eq!(parse_duration(shown), Ok(duration));
        }
    }

    #[test]
    fn what_is_no_duration_says_why() {
        for (text, part) in [
            ("", "not a duration"),
            ("25", "no unit"),
            ("s", "not a duration"),
            ("25x", "not a duration"),
            ("-5s", "not a duration"),
            ("1.5s", "no unit"),
            ("4000d", "ten years"),
            ("99999999999999999999s", "not a duration"),
            ("18446744073709551615h", "ten years"),
        ] {
            let reason = parse_duration(text).expect_err(text);
            assert!(reason.contains(part), "{text}: {reason}");
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, shown) in [
            ("65536", 65_536, "64KiB"),
            ("64KiB", 65_536, "64KiB"),
            ("1 MiB", 1 << 20, "1MiB"),
            ("2GiB", 2 << 30, "2GiB"),
            ("512B", 512, "512"),
            ("1000", 1000, "1000"),
            ("0", 0, "0"),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(show_size(bytes), shown);
            assert_eq!(parse_size(shown), Ok(bytes));
        }
        for (text, part) in
            [("", "not a size"), ("64KB", "not a size"), ("-1", "not a size"), ("99999999999GiB", "too large")]
        {
            let reason = parse_size(text).expect_err(text);
            assert!(reason.contains(part), "{text}: {reason}");
        }
    }
}
