//! `docs/features.md`: every feature has a row, every test it names exists, and a feature
//! that nothing shows says so.

use std::collections::BTreeSet;

/// The letters of the page's sections, and how far each counts.
const IDS: [(char, u32); 4] = [('I', 19), ('S', 10), ('V', 11), ('O', 14)];

/// What a row says that has no test, before the reason.
const NOT_SHOWN: &str = "not shown: ";

/// What is wrong with the page, given all tests of the tree.
pub(super) fn check(page: &str, text: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut missing: BTreeSet<String> = IDS
        .iter()
        .flat_map(|(letter, last)| (1..=*last).map(move |n| format!("{letter}{n}")))
        .collect();
    let all = missing.clone();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let &[_, id, _, shown, _] = cells.as_slice() else {
            continue;
        };
        if !all.contains(id) {
            continue;
        }
        if !missing.remove(id) {
            wrong.push(format!("{page}: {id} has two rows"));
        }
        let quoted: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        // A command or an option is quoted like a test; it has a blank, a dash or a slash.
        let named = quoted.iter().filter(|name| {
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        });
        let (there, gone): (Vec<&str>, Vec<&str>) =
            named.copied().partition(|name| tests.contains(*name));
        wrong.extend(
            gone.iter()
                .map(|name| format!("{page}: {id}: there is no test {name}")),
        );
        let by_command = quoted.iter().any(|name| name.starts_with("cargo "));
        if there.is_empty() && gone.is_empty() && !by_command && !shown.contains(NOT_SHOWN) {
            wrong.push(format!("{page}: {id} names no test and no `{NOT_SHOWN}`"));
        }
    }
    wrong.extend(missing.iter().map(|id| format!("{page}: {id} has no row")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_shown_or_says_why_not() {
        let known = BTreeSet::from(["one".to_owned()]);
        let all: String = IDS
            .iter()
            .flat_map(|(letter, last)| (1..=*last).map(move |n| format!("{letter}{n}")))
            .map(|id| format!("| {id} | a feature | `one` |\n"))
            .collect();
        assert!(check("page", &all, &known).is_empty());
        let with = |row: &str| {
            let text = all.replace("| I4 | a feature | `one` |", &format!("| I4 | x | {row} |"));
            check("page", &text, &known)
        };
        assert!(with("`cargo xtask chart`").is_empty());
        assert!(with("not shown: nobody built it").is_empty());
        assert_eq!(
            with("`one`, `gone`"),
            ["page: I4: there is no test gone".to_owned()]
        );
        assert_eq!(
            with("later, with `--option`"),
            ["page: I4 names no test and no `not shown: `"]
        );
        assert_eq!(
            check("page", &all.replace("| V9 |", "| V10 |"), &known),
            ["page: V10 has two rows", "page: V9 has no row"]
        );
    }
}
