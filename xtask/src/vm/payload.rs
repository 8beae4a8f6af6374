//! What a run brings into the machine: the fresh build, the tests' executables, the command.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Machine;
use super::cache::Cache;
use super::image;
use super::qemu::RunDirectory;
use crate::command::{cargo, output, quoted, run};

/// Files to put below `/payload` in the machine, by their path there.
#[derive(Default)]
pub(crate) struct Payload {
    files: BTreeMap<String, PathBuf>,
    /// The image of `files`, made for the first boot, with the directory that it lives in.
    image: OnceCell<(RunDirectory, PathBuf)>,
}

impl Payload {
    /// Builds the binaries, and the tests that run inside machines.
    pub(crate) fn build() -> Result<Self> {
        let mut payload = Self::default();
        let mut build = cargo();
        build.args(["build", "-p", "lxcfs-user", "-p", "lxcfs-kube", "--bins"]);
        for (_, name, file) in executables(&mut build)? {
            payload.files.insert(format!("bin/{name}"), file);
        }
        let mut tests = cargo();
        tests.args([
            "test",
            "-p",
            "lxcfs-tests",
            "--features",
            "vm-tests",
            "--no-run",
        ]);
        for (kind, name, file) in executables(&mut tests)? {
            let directory = if kind == "test" { "tests" } else { "bin" };
            payload.files.insert(format!("{directory}/{name}"), file);
        }
        Ok(payload)
    }

    /// Adds a file of the caller's, found at `/payload/NAME` inside.
    pub(crate) fn add(&mut self, file: &Path) -> Result<()> {
        let name = file
            .file_name()
            .with_context(|| format!("{} has no name", file.display()))?;
        self.files
            .insert(name.to_string_lossy().into_owned(), file.to_owned());
        Ok(())
    }

    /// An ext4 image of the files, made once and kept as long as this payload.
    pub(crate) fn image(&self, cache: &Cache) -> Result<PathBuf> {
        if let Some((_, image)) = self.image.get() {
            return Ok(image.clone());
        }
        let directory = RunDirectory::create(cache)?;
        let tree = directory.path().join("payload");
        // `vm` is where each boot's own drive goes.
        for place in ["bin", "vm"] {
            fs::create_dir_all(tree.join(place))?;
        }
        for (name, file) in &self.files {
            let target = tree.join(name);
            fs::create_dir_all(target.parent().unwrap_or(&tree))?;
            // Debug information would be most of the image; the machine has no debugger.
            let stripped = name.contains('/')
                && run(Command::new("strip")
                    .arg("-g")
                    .arg("-o")
                    .arg(&target)
                    .arg(file))
                .is_ok();
            if !stripped {
                fs::copy(file, &target)
                    .with_context(|| format!("cannot copy {}", file.display()))?;
            }
        }
        let image = directory.path().join("payload.img");
        image::make_ext4(&tree, &image, 0)?;
        fs::remove_dir_all(&tree)?;
        let (_, image) = self.image.get_or_init(|| (directory, image));
        Ok(image.clone())
    }
}

/// Writes what one boot brings, its settings and its command, as an ext4 image.
pub(crate) fn write_boot(
    machine: &Machine,
    command: &CommandText,
    directory: &Path,
) -> Result<PathBuf> {
    let tree = directory.join("vm");
    fs::create_dir_all(&tree)?;
    fs::write(tree.join("guest.sh"), include_str!("guest.sh"))?;
    fs::write(
        tree.join("lxcfs-vm.service"),
        include_str!("lxcfs-vm.service"),
    )?;
    fs::write(tree.join("command"), format!("{}\n", command.0))?;
    fs::write(tree.join("settings"), settings(machine, command))?;
    let image = directory.join("boot.img");
    image::make_ext4(&tree, &image, 0)?;
    Ok(image)
}

/// Shell text to run inside; empty for an interactive shell on the console.
pub(crate) struct CommandText(pub(crate) String);

impl CommandText {
    /// One word is shell text, several are a command and its arguments.
    pub(crate) fn from_words(words: &[String]) -> Self {
        match words {
            [text] => Self(text.clone()),
            words => Self(
                words
                    .iter()
                    .map(|word| quoted(word))
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
        }
    }

    /// Whether this asks for an interactive shell.
    pub(crate) fn is_interactive(&self) -> bool {
        self.0.is_empty()
    }
}

fn settings(machine: &Machine, command: &CommandText) -> String {
    let shell = if command.is_interactive() { "yes" } else { "" };
    let reboots = if machine.reboots { "yes" } else { "" };
    format!(
        "LAYOUT={}\nSHELL_ON_CONSOLE={shell}\nREBOOTS={reboots}\nexport LXCFS_VM_KERNEL={}\n",
        machine.layout.name(),
        machine.kernel.name()
    )
}

/// Runs a cargo build and returns the kind, name and path of each executable it made.
fn executables(cargo: &mut Command) -> Result<Vec<(String, String, PathBuf)>> {
    Ok(parse_executables(&output(
        cargo.arg("--message-format=json-render-diagnostics"),
    )?))
}

fn parse_executables(messages: &str) -> Vec<(String, String, PathBuf)> {
    messages
        .lines()
        .filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let file = message.get("executable")?.as_str()?;
            let target = message.get("target")?;
            let kind = target.get("kind")?.get(0)?.as_str()?;
            Some((
                kind.to_owned(),
                target.get("name")?.as_str()?.to_owned(),
                file.into(),
            ))
        })
        // The harness of a library or of a binary is no test of the running system.
        .filter(|(kind, _, file): &(String, String, PathBuf)| {
            kind == "test" || (kind == "bin" && !in_deps(file))
        })
        .collect()
}

fn in_deps(file: &Path) -> bool {
    file.parent()
        .and_then(Path::file_name)
        .is_some_and(|name| name == "deps")
}

#[cfg(test)]
mod tests {
    use super::{CommandText, parse_executables};

    #[test]
    fn executables_are_tests_and_real_binaries() {
        let line = |kind: &str, name: &str, file: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},"executable":{file}}}"#
            )
        };
        let messages = [
            line("lib", "lxcfs_tests", "null"),
            line("lib", "lxcfs_tests", "\"/t/debug/deps/lxcfs_tests-1\""),
            line("bin", "lxcfs", "\"/t/debug/lxcfs\""),
            line("bin", "lxcfs", "\"/t/debug/deps/lxcfs-2\""),
            line("test", "vm_psi", "\"/t/debug/deps/vm_psi-3\""),
            "not json".to_owned(),
        ]
        .join("\n");
        let found = parse_executables(&messages);
        let names: Vec<_> = found
            .iter()
            .map(|(kind, name, _)| (&**kind, &**name))
            .collect();
        assert_eq!(names, [("bin", "lxcfs"), ("test", "vm_psi")]);
    }

    #[test]
    fn words_are_text_or_arguments() {
        let text = |words: &[&str]| {
            CommandText::from_words(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()).0
        };
        assert_eq!(text(&["free -m | head"]), "free -m | head");
        assert_eq!(text(&["echo", "a b"]), "echo 'a b'");
        assert_eq!(text(&[]), "");
    }
}
