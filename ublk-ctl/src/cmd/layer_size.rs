//! Sizes as people write them.

/// Bytes: a whole number, alone or with a unit of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || "wanted is a number of bytes, or a number with KiB, MiB, GiB or TiB".to_owned();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "KiB" | "K" => 10,
        "MiB" | "M" => 20,
        "GiB" | "G" => 30,
        "TiB" | "T" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units_and_nothing_else() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64GiB"), Ok(64 << 30));
        assert_eq!(parse_size("3M"), Ok(3 << 20));
        for wrong in ["", "G", "1.5GiB", "-1", "1 GiB", "1GB", "99999999999TiB", "٣"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
