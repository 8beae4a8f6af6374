//! The manual pages and shell completions are made from the command line's own definition
//! and committed; this holds them against it. `LXCFS_BLESS=1 cargo test -p lxcfs-user
//! generated` writes them anew.

use std::path::PathBuf;

use clap::{Command, CommandFactory};

use super::args::Cli;

fn repository(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}

/// Compares with the committed file, or writes it.
fn hold(path: &str, text: &[u8]) {
    let file = repository(path);
    if std::env::var_os("LXCFS_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        return;
    }
    let committed = std::fs::read(&file).unwrap_or_default();
    assert!(
        committed == text,
        "{path} is stale: LXCFS_BLESS=1 cargo test -p lxcfs-user generated"
    );
}

fn man(command: Command) -> Vec<u8> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).unwrap();
    page
}

#[test]
fn manual_pages_are_current() {
    let mut command = Cli::command();
    command.build();
    hold("docs/man/lxcfs.1", &man(command.clone()));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("lxcfs-{}", sub.get_name());
        let page = man(sub.clone().display_name(name.clone()));
        hold(&format!("docs/man/{name}.1"), &page);
    }
}

#[test]
fn completions_are_current() {
    use clap_complete::Shell;
    for (shell, file) in [
        (Shell::Bash, "lxcfs.bash"),
        (Shell::Zsh, "_lxcfs"),
        (Shell::Fish, "lxcfs.fish"),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "lxcfs", &mut text);
        hold(&format!("deploy/completions/{file}"), &text);
    }
}
