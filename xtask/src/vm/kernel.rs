//! Debian's cloud kernels: which suite has which, how they are fetched and unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::apt::Suite;
use super::cache::Cache;
use super::image;
use crate::command::run;

/// A kernel line that the suite covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 11.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13.
    #[value(name = "6.12")]
    V6_12,
    /// Of Debian 13's backports; for captures, no test asks for it.
    #[value(name = "6.18")]
    V6_18,
    /// Debian unstable.
    #[value(name = "7")]
    V7,
}

impl Kernel {
    /// The four that every release of the project is tested on.
    pub(crate) const SUPPORTED: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::V7];

    /// The name used on command lines and in test declarations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V6_18 => "6.18",
            Self::V7 => "7",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::V6_18 => "trixie-backports",
            Self::V7 => "sid",
        }
    }
}

/// An unpacked kernel in the cache.
pub(crate) struct Unpacked {
    /// The kernel image to boot.
    pub(crate) vmlinuz: PathBuf,
    /// `lib/modules/RELEASE`, with `modules.dep`.
    pub(crate) modules: PathBuf,
    /// An ext4 image of the directory that holds `RELEASE/`, to mount on `/usr/lib/modules`.
    pub(crate) modules_image: PathBuf,
}

/// The kernel from the cache, or fetched into it.
pub(crate) fn fetch(cache: &Cache, kernel: Kernel) -> Result<Unpacked> {
    let entry = format!("kernel-{}", kernel.name());
    let root = cache.entry(&entry, |partial| make(cache, kernel, partial))?;
    locate(&root)
}

fn make(cache: &Cache, kernel: Kernel, partial: &Path) -> Result<()> {
    let suite = Suite::fetch(cache, kernel.suite())?;
    let wanted = format!("linux-image-{}.", kernel.name());
    let packages = match kernel {
        // Backports move on to newer lines. Of an older one they keep the signed image, which
        // has all files, for a while, and nothing else.
        Kernel::V6_18 => newest(&suite.names(&wanted)?).into_iter().collect(),
        _ => closure("linux-image-cloud-amd64", |package| suite.depends(package))?,
    };
    if !packages.iter().any(|package| package.starts_with(&wanted)) {
        bail!(
            "Debian {} has no kernel {} any more, it has: {}",
            kernel.suite(),
            kernel.name(),
            packages.join(" ")
        );
    }
    suite.unpack(&packages, partial)?;
    let modules_parent = module_parent(partial)?;
    // Packages run depmod when they are installed; unpacking alone does not.
    let release = only_entry(&modules_parent)?;
    let name = release.file_name().unwrap_or_default();
    let base = modules_parent
        .ancestors()
        .nth(2)
        .context("modules are not below lib")?;
    run(Command::new("/sbin/depmod").arg("-b").arg(base).arg(name))?;
    image::make_ext4(&modules_parent, &partial.join("modules.img"), 64 << 20)?;
    locate(partial).map(drop)
}

fn locate(root: &Path) -> Result<Unpacked> {
    let modules = only_entry(&module_parent(root)?)?;
    let release = modules
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    // Packages made after the split keep the image beside the modules.
    let vmlinuz = [
        root.join(format!("boot/vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ]
    .into_iter()
    .find(|path| path.is_file())
    .with_context(|| format!("no vmlinuz of {release} below {}", root.display()))?;
    Ok(Unpacked {
        vmlinuz,
        modules,
        modules_image: root.join("modules.img"),
    })
}

/// `lib/modules`, or `usr/lib/modules` in packages made after the /usr merge.
fn module_parent(root: &Path) -> Result<PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|place| root.join(place))
        .find(|path| path.is_dir())
        .with_context(|| format!("no lib/modules below {}", root.display()))
}

fn only_entry(directory: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    match (entries.pop(), entries.is_empty()) {
        (Some(entry), true) => Ok(entry.path()),
        _ => bail!("{} should hold exactly one directory", directory.display()),
    }
}

/// The cloud image with the highest numbers in its name.
fn newest(names: &[String]) -> Option<String> {
    let numbers = |name: &&String| -> Vec<u32> {
        let words = name.split(|c: char| !c.is_ascii_digit());
        words.filter_map(|word| word.parse().ok()).collect()
    };
    let images = names.iter().filter(|name| name.ends_with("-cloud-amd64"));
    images.max_by_key(numbers).cloned()
}

/// The kernel's own packages that `start` leads to, itself left out: it only carries depends.
fn closure(start: &str, depends: impl Fn(&str) -> Result<Vec<String>>) -> Result<Vec<String>> {
    // Plain `linux-base` and `initramfs-tools` serve an installed system, not an unpacked kernel.
    let carries_files = |name: &str| {
        [
            "linux-image-",
            "linux-base-",
            "linux-modules-",
            "linux-binary-",
        ]
        .iter()
        .any(|p| name.starts_with(p))
    };
    let mut found: Vec<String> = Vec::new();
    let mut queue = vec![start.to_owned()];
    while let Some(package) = queue.pop() {
        for dependency in depends(&package)? {
            if carries_files(&dependency) && !found.contains(&dependency) {
                found.push(dependency.clone());
                queue.push(dependency);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{closure, newest};

    #[test]
    fn the_newest_image_counts_by_its_numbers() {
        let names = [
            "linux-image-6.18.9+deb13-cloud-amd64",
            "linux-image-6.18.15+deb13-cloud-amd64",
            "linux-image-6.18.15+deb13-rt-amd64",
            "linux-image-6.18.16+deb13-cloud-amd64-dbg",
        ]
        .map(str::to_owned);
        assert_eq!(newest(&names).as_ref(), Some(&names[1]));
        assert_eq!(newest(&names[2..]), None);
    }

    #[test]
    fn split_packages_are_followed() {
        let depends = |package: &str| {
            Ok(match package {
                "linux-image-cloud-amd64" => vec!["linux-image-7.2-cloud-amd64".to_owned()],
                "linux-image-7.2-cloud-amd64" => vec![
                    "dracut".to_owned(),
                    "linux-base".to_owned(),
                    "linux-base-7.2-cloud-amd64".to_owned(),
                    "linux-modules-7.2-cloud-amd64".to_owned(),
                ],
                _ => vec!["linux-image-7.2-cloud-amd64".to_owned()],
            })
        };
        assert_eq!(
            closure("linux-image-cloud-amd64", depends).unwrap(),
            [
                "linux-image-7.2-cloud-amd64",
                "linux-base-7.2-cloud-amd64",
                "linux-modules-7.2-cloud-amd64"
            ]
        );
    }
}
