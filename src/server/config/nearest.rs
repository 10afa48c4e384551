//! The known name that a mistyped one probably means.

/// No name is half as long, so that nothing longer is near one.
const LONGEST_BYTES: usize = 64;

/// The name among `known` that is nearest to `typed`, if one is near at all.
pub(super) fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if typed.len() > LONGEST_BYTES {
        return None;
    }
    let limit = typed.chars().count().div_ceil(2);
    known
        .map(|name| (distance(typed, name), name))
        .filter(|(far, _)| *far <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions and replacements that make one text of the other.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, a) in left.chars().enumerate() {
        let mut diagonal = index;
        let mut before = index + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&right) {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = *cell;
            *cell = replaced.min(diagonal + 1).min(before + 1);
            before = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_nonsense_none() {
        let known = ["size_mib", "dir", "enabled"];
        assert_eq!(nearest("size_mb", known.into_iter()), Some("size_mib"));
        assert_eq!(nearest("directory", known.into_iter()), None);
        assert_eq!(nearest("enable", known.into_iter()), Some("enabled"));
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
