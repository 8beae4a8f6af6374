//! `cargo xtask tidy`: the rules that no compiler checks, over the text of the tree.

mod faults;
mod features;
mod parsers;
mod rules;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use lxcfs_common::catalogue::{CATALOGUE, Entry, Kind};

use crate::command::{output, repository};
use crate::test::plan;

/// Checks import rules, layers, file sizes, test declarations, the documented files, faults and
/// features, and that every parser meets arbitrary input.
#[derive(Parser)]
pub(crate) struct Args {}

impl Args {
    /// Prints every violation; fails when there is one.
    pub(crate) fn run(self) -> Result<ExitCode> {
        Ok(if report()? {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// Prints every violation; returns whether there is none.
pub(crate) fn report() -> Result<bool> {
    let wrong = violations(repository())?;
    for line in &wrong {
        println!("{line}");
    }
    if !wrong.is_empty() {
        println!("tidy: {} violations", wrong.len());
    }
    Ok(wrong.is_empty())
}

/// Everything that is wrong below `top`.
fn violations(top: &Path) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    // Run as root over somebody else's checkout, git would refuse to look.
    git.current_dir(top)
        .args(["-c", "safe.directory=*", "ls-files"])
        .args(["--cached", "--others", "--exclude-standard"]);
    let mut wrong = Vec::new();
    let mut tests = BTreeSet::new();
    let mut sources = Vec::new();
    for path in output(&mut git)?.lines() {
        // A file deleted but not yet committed is still listed.
        let Ok(text) = fs::read_to_string(top.join(path)) else {
            continue;
        };
        if path.ends_with(".rs") {
            wrong.extend(rules::check(path, &text));
            tests.append(&mut faults::tests(&text));
        }
        if path.ends_with("Cargo.toml") {
            wrong.extend(check_dependencies(path, &text));
        }
        if path.ends_with(".rs") {
            sources.push((path.to_owned(), text));
        }
    }
    wrong.extend(parsers::check(&sources));
    for (name, source) in plan::test_files(&top.join("tests/tests"))? {
        wrong.extend(
            plan::machines(&name, &source)
                .err()
                .map(|error| format!("{error:#}")),
        );
    }
    let page = "docs/virtual-files.md";
    let text = fs::read_to_string(top.join(page)).with_context(|| format!("cannot read {page}"))?;
    wrong.extend(check_catalogue(page, &text, CATALOGUE));
    let page = "docs/faults.md";
    let text = fs::read_to_string(top.join(page)).with_context(|| format!("cannot read {page}"))?;
    wrong.extend(faults::check(page, &text, &tests));
    let page = "docs/features.md";
    let text = fs::read_to_string(top.join(page)).with_context(|| format!("cannot read {page}"))?;
    wrong.extend(features::check(page, &text, &tests));
    Ok(wrong)
}

/// Nothing depends on the automation or the tests, and the shared types on almost nothing.
fn check_dependencies(path: &str, text: &str) -> Vec<String> {
    let names = |line: &str| {
        line.split(['.', ' ', '='])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let dependencies: Vec<String> = text
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .map(names)
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .collect();
    let forbidden = |name: &&String| {
        let only = ["bytemuck"];
        ["xtask", "lxcfs-tests"].contains(&name.as_str())
            || (path == "lxcfs-common/Cargo.toml" && !only.contains(&name.as_str()))
    };
    dependencies
        .iter()
        .filter(forbidden)
        .map(|name| format!("{path}: may not depend on {name}"))
        .collect()
}

/// Every file of the catalogue has a section of its own, or is named in its directory's; and
/// every such section is about something that is served.
fn check_catalogue(page: &str, text: &str, catalogue: &[Entry]) -> Vec<String> {
    let sections: Vec<(&str, &str)> = text
        .split("\n## ")
        .skip(1)
        .map(|section| section.split_once('\n').unwrap_or((section, "")))
        .collect();
    let documented = |path: &str| {
        sections
            .iter()
            .any(|(heading, body)| match path.strip_prefix(heading) {
                Some("") => true,
                Some(below) => {
                    below.starts_with('/') && body.contains(&format!("`{}`", &below[1..]))
                }
                None => false,
            })
    };
    let mut wrong = Vec::new();
    for entry in catalogue
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::File(_)))
    {
        let path = format!("/{}", entry.path);
        if !documented(&path) {
            wrong.push(format!("{page}: {path} is not documented"));
        }
    }
    for (heading, _) in sections
        .iter()
        .filter(|(heading, _)| heading.starts_with('/'))
    {
        if !catalogue.iter().any(|entry| entry.path == &heading[1..]) {
            wrong.push(format!("{page}: {heading} is not in the catalogue"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use lxcfs_common::catalogue::{CATALOGUE, Kind};

    use super::{check_catalogue, check_dependencies, violations};
    use crate::command::repository;

    #[test]
    fn the_tree_is_tidy() {
        let wrong = violations(repository()).unwrap();
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    }

    #[test]
    fn dependencies_are_held_down() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nbytemuck = \"1\"\n# why\n\
                        serde.workspace = true\nxtask = { path = \"..\" }\n[lints]\nworkspace = true\n";
        assert_eq!(check_dependencies("a/Cargo.toml", manifest).len(), 1);
        let common = check_dependencies("lxcfs-common/Cargo.toml", manifest);
        assert_eq!(common.len(), 2, "{common:?}");
    }

    #[test]
    fn documentation_and_catalogue_name_the_same_files() {
        let page = |text: &str| check_catalogue("page", text, CATALOGUE);
        let all: String = CATALOGUE
            .iter()
            .filter(|entry| matches!(entry.kind, Kind::File(_)))
            .map(|entry| format!("\n## /{}\n", entry.path))
            .collect();
        assert!(page(&all).is_empty());
        let without = all.replace("\n## /proc/uptime\n", "");
        assert_eq!(page(&without), ["page: /proc/uptime is not documented"]);
        let by_directory = format!("{without}\n## /proc\n`uptime` is there.");
        assert!(page(&by_directory).is_empty());
        let invented = format!("{all}\n## /proc/invented\n");
        assert_eq!(
            page(&invented),
            ["page: /proc/invented is not in the catalogue"]
        );
    }
}
