//! Which facts differ by more than they move, and which of those the documentation lists.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::facts::Facts;

/// A fact that is not the same on both mounts. Two are equal when they are of the same line.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    /// The file, as in `proc/meminfo`.
    pub(crate) file: String,
    /// The line in it, or `presence` or `mode`.
    pub(crate) line: String,
    theirs: String,
    ours: String,
}

impl Difference {
    fn key(&self) -> (&str, &str) {
        (&self.file, &self.line)
    }
}

impl PartialEq for Difference {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Difference {}

impl PartialOrd for Difference {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Difference {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// How far a value may lie outside what the peer showed before and after.
fn tolerance(file: &str, line: &str) -> f64 {
    match file {
        // kB: charges are batched, 64 pages per CPU, and readers come and go.
        "proc/meminfo" if !line.starts_with("Huge") && !line.ends_with("width") => 2048.0,
        // Ticks: two seconds, a sample and a throttled period of the reader.
        "proc/stat" if line.starts_with("cpu") => 200.0,
        "proc/stat" if line.starts_with("procs") => 1.0,
        // Seconds.
        "proc/uptime" => 2.0,
        // Both sample every five seconds, not at the same time.
        "proc/loadavg" if line.ends_with("minute") => 0.3,
        "proc/loadavg" if line.ends_with("minutes") => 0.1,
        // A reader counts itself, or not.
        "proc/loadavg" if line == "running" || line == "threads" => 2.0,
        // Percents and microseconds.
        _ if file.starts_with("proc/pressure/") && line.ends_with("total") => 2e6,
        _ if file.starts_with("proc/pressure/") => 20.0,
        _ => 0.0,
    }
}

fn number(value: &str) -> Option<f64> {
    value.split(' ').next()?.parse().ok()
}

fn same(file: &str, line: &str, before: &str, ours: &str, after: &str) -> bool {
    if file == "proc/cpuinfo" && line.starts_with("cpu MHz") {
        return true;
    }
    if ours == before || ours == after {
        return true;
    }
    let (Some(low), Some(value), Some(high)) = (number(before), number(ours), number(after)) else {
        return false;
    };
    // Nothing beside something is a difference however small.
    let counts = file == "proc/meminfo" || file == "proc/stat";
    if counts && (value == 0.0) != (low == 0.0 && high == 0.0) {
        return false;
    }
    let tolerance = tolerance(file, line);
    value >= low.min(high) - tolerance && value <= low.max(high) + tolerance
}

/// The facts of ours that differ from the peer's, read before and after ours.
pub(crate) fn differences(before: &Facts, ours: &Facts, after: &Facts) -> BTreeSet<Difference> {
    let keys: BTreeSet<_> = before.keys().chain(ours.keys()).collect();
    let mut found = BTreeSet::new();
    for key in keys {
        let (file, line) = key;
        let presence = (file.clone(), "presence".to_owned());
        let both = before.contains_key(&presence) && ours.contains_key(&presence);
        // A file that only one of them has differs once, not in every line.
        if !both && line != "presence" {
            continue;
        }
        let differs = match (before.get(key), ours.get(key), after.get(key)) {
            (Some(before), Some(ours), Some(after)) => !same(file, line, before, ours, after),
            _ => true,
        };
        if differs {
            let shown =
                |value: Option<&String>| value.map_or("(absent)", String::as_str).to_owned();
            found.insert(Difference {
                file: file.clone(),
                line: line.clone(),
                theirs: shown(before.get(key)),
                ours: shown(ours.get(key)),
            });
        }
    }
    found
}

/// One row of the table: where it holds.
struct Row {
    files: Vec<String>,
    lines: Vec<String>,
    /// Of the lines, those that need not differ each time.
    at_times: Vec<String>,
    versions: Vec<String>,
}

/// The table "Differences from C lxcfs".
pub(crate) struct Documented(Vec<Row>);

impl Documented {
    /// Reads the table: files and lines in backquotes, `*` for any text, a question mark behind a
    /// line that may be the same by chance, versions with layout.
    pub(crate) fn parse(document: &str) -> Self {
        let section = document
            .split("\n## ")
            .find_map(|section| section.strip_prefix("Differences from C lxcfs\n"))
            .expect("a section \"Differences from C lxcfs\" in docs/virtual-files.md");
        let quoted = |cell: &str| {
            cell.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let marked = |cell: &str| {
            let parts: Vec<&str> = cell.split('`').collect();
            let pairs = parts.windows(2).skip(1).step_by(2);
            pairs
                .filter(|pair| pair[1].starts_with('?'))
                .map(|pair| pair[0].to_owned())
                .collect()
        };
        Self(
            rows.map(|row| {
                let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                Row {
                    files: quoted(cells[1]),
                    lines: quoted(cells[2]),
                    at_times: marked(cells[2]),
                    versions: cells[3].split(", ").map(str::to_owned).collect(),
                }
            })
            .collect(),
        )
    }

    /// The rows that hold for `version`.
    fn rows<'a>(&'a self, version: &'a str) -> impl Iterator<Item = &'a Row> {
        self.0.iter().filter(move |row| {
            row.versions == ["all"] || row.versions.iter().any(|known| known == version)
        })
    }

    fn explains(&self, version: &str, one: &Difference) -> bool {
        let any = |patterns: &[String], text: &str| patterns.iter().any(|p| matches(p, text));
        self.rows(version)
            .any(|row| any(&row.files, &one.file) && any(&row.lines, &one.line))
    }
}

/// What the table lists for `version` and nothing was found of: each line of a row, and each
/// of its files, has to differ somewhere.
pub(crate) fn no_longer_there(
    documented: &Documented,
    version: &str,
    found: &BTreeSet<Difference>,
) -> Vec<String> {
    let among = |patterns: &[String], text: &str| patterns.iter().any(|p| matches(p, text));
    let mut stale = Vec::new();
    for row in documented.rows(version) {
        let always = row.lines.iter().filter(|line| !row.at_times.contains(line));
        let lines: Vec<&String> = always.collect();
        let gone = lines.iter().filter(|line| {
            let differs =
                |one: &Difference| among(&row.files, &one.file) && matches(line, &one.line);
            !found.iter().any(differs)
        });
        stale.extend(gone.map(|line| format!("{:?}: {line}", row.files)));
        let gone = row.files.iter().filter(|file| {
            let differs =
                |one: &Difference| matches(file, &one.file) && among(&row.lines, &one.line);
            !lines.is_empty() && !found.iter().any(differs)
        });
        stale.extend(gone.map(|file| format!("{file}: {:?}", row.lines)));
    }
    stale
}

/// What the table does not list, one line each: the line and both values.
pub(crate) fn missing_from(
    documented: &Documented,
    version: &str,
    found: &BTreeSet<Difference>,
) -> Vec<String> {
    let unexplained = found
        .iter()
        .filter(|one| !documented.explains(version, one));
    unexplained
        .map(|one| {
            format!(
                "{}: {}: C lxcfs {:?}, ours {:?}",
                one.file, one.line, one.theirs, one.ours
            )
        })
        .collect()
}

/// Whether `text` is `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .any(|at| matches(tail, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# Page\n\n## Differences from C lxcfs\n\n| file | line | versions | why |\n\
        |---|---|---|---|\n\
        | `proc/a` | `One` `Two`? | all | x |\n\
        | `sys/*` `proc/b` | `presence` | 7.0.0 v2 | x |\n\
        | `proc/c` | `Three`? | all | x |\n\n## Next\n";

    fn found(list: &[(&str, &str)]) -> BTreeSet<Difference> {
        let difference = |(file, line): &(&str, &str)| Difference {
            file: (*file).to_owned(),
            line: (*line).to_owned(),
            theirs: "1".to_owned(),
            ours: "2".to_owned(),
        };
        list.iter().map(difference).collect()
    }

    #[test]
    fn what_differs_and_is_not_listed_for_the_version_is_named() {
        let table = Documented::parse(TABLE);
        let all = [
            ("proc/a", "One"),
            ("proc/c", "Three"),
            ("sys/x/y", "presence"),
        ];
        assert!(missing_from(&table, "7.0.0 v2", &found(&all)).is_empty());
        let missing = missing_from(&table, "5.0.3 v1", &found(&all));
        assert_eq!(missing, ["sys/x/y: presence: C lxcfs \"1\", ours \"2\""]);
        assert_eq!(
            missing_from(&table, "7.0.0 v2", &found(&[("proc/a", "Four")])).len(),
            1
        );
    }

    #[test]
    fn what_is_listed_for_the_version_and_is_the_same_is_named() {
        let table = Documented::parse(TABLE);
        let seen = found(&[
            ("proc/a", "One"),
            ("sys/x", "presence"),
            ("proc/b", "presence"),
        ]);
        let nothing: Vec<String> = Vec::new();
        assert_eq!(no_longer_there(&table, "7.0.0 v2", &seen), nothing);
        let seen = found(&[("proc/a", "Two"), ("sys/x", "presence")]);
        let gone = no_longer_there(&table, "7.0.0 v2", &seen);
        assert_eq!(gone, ["[\"proc/a\"]: One", "proc/b: [\"presence\"]"]);
        assert_eq!(no_longer_there(&table, "5.0.3 v1", &seen).len(), 1);
    }
}
