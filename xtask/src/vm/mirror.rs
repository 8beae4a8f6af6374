//! Where Debian's archive is: wherever this machine's own apt gets it from.

use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{is_root, output, run};

/// The two archives, as URIs without a trailing slash.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// The archive of all suites.
    pub(crate) debian: String,
    /// The archive of security updates.
    pub(crate) security: String,
}

/// Asks apt.
pub(crate) fn find() -> Result<Mirror> {
    if let Some(mirror) = parse(&index_targets()?) {
        return Ok(mirror);
    }
    // A fresh machine or image may have its sources configured and no lists yet.
    if is_root() {
        run(Command::new("apt-get").args(["update", "-q"]))?;
    }
    parse(&index_targets()?).context(
        "apt has no Debian archive and security archive configured (or no lists yet: run \
         `apt-get update`); the virtual machines are made of Debian packages",
    )
}

fn index_targets() -> Result<String> {
    output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
    ]))
}

fn parse(targets: &str) -> Option<Mirror> {
    let uri = |wanted: &str| {
        let mut lines = targets.lines().filter_map(|line| line.split_once(' '));
        let (_, uri) = lines.find(|(label, _)| *label == wanted)?;
        Some(uri.trim_end_matches('/').to_owned())
    };
    Some(Mirror {
        debian: uri("Debian")?,
        security: uri("Debian-Security")?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Mirror, parse};

    #[test]
    fn both_archives_are_found_among_others() {
        let targets = "Other http://other.example/apt/\n\
             Debian http://mirror.example/debian/\n\
             Debian http://mirror.example/debian/\n\
             Debian-Security http://mirror.example/debian-security/\n";
        let expected = Mirror {
            debian: "http://mirror.example/debian".into(),
            security: "http://mirror.example/debian-security".into(),
        };
        assert_eq!(parse(targets), Some(expected));
        assert_eq!(parse("Debian http://mirror.example/debian/\n"), None);
    }
}
