//! `cargo xtask tidy`: the rules that no compiler checks, over the text of the tree.

mod rules;
mod source;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Parser;

use crate::command::{output, repository};
use crate::test::plan;

/// Checks import rules, layers, file sizes and test declarations.
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
    git.current_dir(top)
        .args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let mut wrong = Vec::new();
    for path in output(&mut git)?.lines() {
        // A file deleted but not yet committed is still listed.
        let Ok(text) = fs::read_to_string(top.join(path)) else {
            continue;
        };
        if path.ends_with(".rs") {
            wrong.extend(rules::check(path, &text));
        }
        if path.ends_with("Cargo.toml") {
            wrong.extend(check_dependencies(path, &text));
        }
    }
    for (name, source) in plan::test_files(&top.join("tests/tests"))? {
        wrong.extend(
            plan::machines(&name, &source)
                .err()
                .map(|error| format!("{error:#}")),
        );
    }
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

#[cfg(test)]
mod tests {
    use super::{check_dependencies, violations};
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
}
