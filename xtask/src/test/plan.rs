//! Which test file runs where, read from the file's name and its `// vm:` lines.
//!
//! `tests/tests/native_*.rs` run on this machine, `vm_*.rs` in virtual machines, `any_*.rs` in both.
//! Each `// vm:` line of a file asks for boots: `// vm: all/v2 6.1/v1 swap=512`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::vm::{Kernel, Layout, Machine};

/// Keeps a `vm_*.rs` file out of a plain `cargo test`.
pub(crate) const VM_ONLY: &str = "#![cfg(feature = \"vm-tests\")]";

/// Where the tests of a file run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine only.
    Native,
    /// In virtual machines only.
    Vm,
    /// In both.
    Any,
}

/// Reads the place from a file name without `.rs`.
pub(crate) fn place(name: &str) -> Result<Place> {
    match name.split_once('_') {
        Some(("native", _)) => Ok(Place::Native),
        Some(("vm", _)) => Ok(Place::Vm),
        Some(("any", _)) => Ok(Place::Any),
        _ => bail!("tests/tests/{name}.rs must be named native_*, vm_* or any_*"),
    }
}

/// The machines that a test file asks for; an error explains what contradicts the file's name.
pub(crate) fn machines(name: &str, source: &str) -> Result<Vec<Machine>> {
    let place = place(name)?;
    let lines = source
        .lines()
        .filter_map(|line| line.strip_prefix("// vm:"));
    let mut machines = Vec::new();
    for line in lines {
        machines
            .extend(parse(line).with_context(|| format!("tests/tests/{name}.rs, // vm:{line}"))?);
    }
    let guarded = source.lines().any(|line| line == VM_ONLY);
    match place {
        Place::Native if !machines.is_empty() => bail!("{name}: native_* takes no `// vm:` line"),
        Place::Vm | Place::Any if machines.is_empty() => {
            bail!("{name}: say where it runs, as in `// vm: all/v2`")
        }
        Place::Vm if !guarded => bail!("{name}: a vm_* file needs the line {VM_ONLY}"),
        Place::Native | Place::Any if guarded => {
            bail!("{name}: only vm_* files may be behind the feature vm-tests")
        }
        _ => Ok(machines),
    }
}

/// Every boot of the suite with the test files that share it.
///
/// Files share a boot when they ask for the same machine; its time limit is the sum of theirs.
pub(crate) fn boots(directory: &Path) -> Result<Vec<(Machine, Vec<String>)>> {
    let mut boots: BTreeMap<Machine, (u64, Vec<String>)> = BTreeMap::new();
    for (name, source) in test_files(directory)? {
        for machine in machines(&name, &source)? {
            let alike = Machine {
                timeout: 0,
                ..machine
            };
            let (timeout, names) = boots.entry(alike).or_default();
            *timeout += machine.timeout;
            names.push(name.clone());
        }
    }
    let boots = boots.into_iter();
    Ok(boots
        .map(|(alike, (timeout, names))| (Machine { timeout, ..alike }, names))
        .collect())
}

/// Name and text of each test executable's file, sorted by name.
pub(crate) fn test_files(directory: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        // cargo's own rule: NAME.rs, or NAME/main.rs with modules beside it.
        let source = if path.is_dir() {
            path.join("main.rs")
        } else {
            path.clone()
        };
        if source
            .extension()
            .is_some_and(|extension| extension == "rs")
            && source.is_file()
        {
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            files.push((name, fs::read_to_string(&source)?));
        }
    }
    files.sort();
    Ok(files)
}

fn parse(line: &str) -> Result<Vec<Machine>> {
    let mut places = Vec::new();
    let mut shape = Machine::default();
    for word in line.split_whitespace() {
        if let Some((kernel, layout)) = word.split_once('/') {
            let layout = value::<Layout>(layout)?;
            let kernels = match kernel {
                "all" => Kernel::SUPPORTED.to_vec(),
                kernel => vec![value::<Kernel>(kernel)?],
            };
            places.extend(kernels.into_iter().map(|kernel| (kernel, layout)));
            continue;
        }
        match word.split_once('=') {
            Some(("smp", count)) => shape.smp = count.parse()?,
            Some(("mem", mib)) => shape.mem = mib.parse()?,
            Some(("swap", mib)) => shape.swap = mib.parse()?,
            Some(("timeout", seconds)) => shape.timeout = seconds.parse()?,
            Some(("append", argument)) => shape.append = format!("{} {argument}", shape.append),
            None if word == "systemd" => shape.systemd = true,
            None if word == "reboots" => shape.reboots = true,
            _ => bail!(
                "`{word}` is none of KERNEL/LAYOUT, smp=, mem=, swap=, timeout=, append=, systemd, reboots"
            ),
        }
    }
    if places.is_empty() {
        bail!("names no KERNEL/LAYOUT, as in `6.1/v2` or `all/v2`");
    }
    Ok(places
        .into_iter()
        .map(|(kernel, layout)| Machine {
            kernel,
            layout,
            ..shape.clone()
        })
        .collect())
}

fn value<T: ValueEnum>(word: &str) -> Result<T> {
    T::from_str(word, false).map_err(anyhow::Error::msg)
}

#[cfg(test)]
mod tests {
    use super::{Machine, VM_ONLY, boots, machines, parse};
    use crate::vm::{Kernel, Layout};

    #[test]
    fn a_line_is_places_and_a_shape() {
        let found = parse(" 5.10/v2 6.1/hybrid smp=4 swap=512 append=psi=1 append=quiet").unwrap();
        let shape = Machine {
            smp: 4,
            swap: 512,
            append: " psi=1 quiet".to_owned(),
            ..Machine::default()
        };
        assert_eq!(
            found,
            [
                Machine {
                    kernel: Kernel::V5_10,
                    layout: Layout::V2,
                    ..shape.clone()
                },
                Machine {
                    kernel: Kernel::V6_1,
                    layout: Layout::Hybrid,
                    ..shape
                },
            ]
        );
        assert_eq!(parse("all/v2 systemd").unwrap().len(), 4);
    }

    #[test]
    fn nonsense_is_named() {
        for line in [
            "",
            "smp=4",
            "6.1",
            "6.2/v2",
            "6.1/v3",
            "6.1/v2 smp=many",
            "6.1/v2 fast",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn name_and_content_must_agree() {
        let guard = format!("{VM_ONLY}\n");
        assert!(machines("native_a", "").unwrap().is_empty());
        assert_eq!(machines("any_a", "// vm: 6.1/v2\n").unwrap().len(), 1);
        assert_eq!(
            machines("vm_a", &format!("{guard}// vm: all/v2\n// vm: 6.1/v1\n"))
                .unwrap()
                .len(),
            5
        );
        for (name, source) in [
            ("a", ""),
            ("native_a", "// vm: 6.1/v2\n"),
            ("native_a", &*guard),
            ("any_a", ""),
            ("any_a", &*format!("{guard}// vm: 6.1/v2\n")),
            ("vm_a", &*guard),
            ("vm_a", "// vm: 6.1/v2\n"),
        ] {
            assert!(machines(name, source).is_err(), "{name}: {source}");
        }
    }

    #[test]
    fn equal_machines_share_a_boot_and_their_time_adds_up() {
        let directory = std::env::temp_dir().join(format!("xtask-plan-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("any_b")).unwrap();
        std::fs::write(directory.join("any_a.rs"), "// vm: 6.1/v2 timeout=100\n").unwrap();
        std::fs::write(directory.join("any_b/main.rs"), "// vm: 6.1/v2 7/v2\n").unwrap();
        let boots = boots(&directory).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        let found: Vec<_> = boots
            .iter()
            .map(|(m, names)| (m.kernel.name(), m.timeout, names.join(" ")))
            .collect();
        assert_eq!(
            found,
            [
                ("6.1", 1000, "any_a any_b".to_owned()),
                ("7", 900, "any_b".to_owned())
            ]
        );
    }
}
