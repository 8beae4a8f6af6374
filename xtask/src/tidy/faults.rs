//! `docs/faults.md`: every fault has a row, and every test it names exists.

use std::collections::BTreeSet;

/// Faults are numbered from 1 to this.
const LAST: u32 = 33;

/// Names of the tests in the text of a source file, of `proptest!` and async ones too.
pub(super) fn tests(text: &str) -> BTreeSet<String> {
    let mut is_test = false;
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        }
        let function = line.strip_prefix("async ").unwrap_or(line);
        if let Some(rest) = function.strip_prefix("fn ") {
            let name = rest.split('(').next().unwrap_or(rest);
            if std::mem::take(&mut is_test) {
                found.insert(name.to_owned());
            }
        }
    }
    found
}

/// What is wrong with the page, given all tests of the tree.
pub(super) fn check(page: &str, text: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut rows = BTreeSet::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let &[_, number, _, named, _] = cells.as_slice() else {
            continue;
        };
        let Some(number) = number.strip_prefix('F').and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        rows.insert(number);
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            wrong.push(format!("{page}: F{number} names no test"));
        }
        for name in names.iter().filter(|name| !tests.contains(**name)) {
            wrong.push(format!("{page}: F{number}: there is no test {name}"));
        }
    }
    for number in (1..=LAST).filter(|number| !rows.contains(number)) {
        wrong.push(format!("{page}: F{number} has no row"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tests_count() {
        let source =
            "fn helper() {}\n    #[test]\n    fn one() {}\n#[tokio::test]\nasync fn two() {}";
        let expected = ["one", "two"].map(str::to_owned);
        assert_eq!(tests(source), BTreeSet::from(expected));
    }

    #[test]
    fn every_fault_has_a_test_that_exists() {
        let known = BTreeSet::from(["one".to_owned()]);
        let all: String = (1..=LAST)
            .map(|n| format!("| F{n} | a fault | `one` |\n"))
            .collect();
        assert!(check("page", &all, &known).is_empty());
        let without = all.replace("| F7 |", "| G7 |");
        assert_eq!(check("page", &without, &known), ["page: F7 has no row"]);
        let renamed = all.replacen("`one`", "`one`, `gone`", 1);
        assert_eq!(
            check("page", &renamed, &known),
            ["page: F1: there is no test gone"]
        );
        let empty = all.replacen("`one`", "later", 1);
        assert_eq!(check("page", &empty, &known), ["page: F1 names no test"]);
    }
}
