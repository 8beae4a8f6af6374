//! The first file system of a virtual machine: busybox, a script and the modules it loads.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cache::{Cache, fingerprint};
use super::kernel::{Kernel, Unpacked};

/// Modules the machine cannot start without. Those built into a kernel are left out for it.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "ext4",
    "crc32c_generic",
    "overlay",
    "fuse",
];
/// Debian's busybox-static.
const BUSYBOX: &str = "/bin/busybox";
const INIT: &str = include_str!("init.sh");

/// The initramfs for `kernel`, made when the cache lacks it.
pub(crate) fn fetch(cache: &Cache, kernel: Kernel, unpacked: &Unpacked) -> Result<PathBuf> {
    let vmlinuz = unpacked.vmlinuz.display().to_string();
    let recipe = fingerprint([INIT, &MODULES.join(" "), &vmlinuz]);
    let prefix = format!("initramfs-{}-", kernel.name());
    let path = cache.entry(&format!("{prefix}{recipe}"), |partial| {
        fs::write(partial, build(unpacked)?)?;
        Ok(())
    })?;
    cache.retire(&prefix, &path)?;
    Ok(path)
}

fn build(unpacked: &Unpacked) -> Result<Vec<u8>> {
    let read = |name: &str| {
        let path = unpacked.modules.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let files = load_order(&read("modules.dep")?, &read("modules.builtin")?, MODULES)?;
    let busybox = fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}"))?;

    let mut archive = Cpio::default();
    for directory in ["bin", "dev", "proc", "sys", "root", "modules"] {
        archive.add(directory, 0o040_755, &[]);
    }
    archive.add("bin/busybox", 0o100_755, &busybox);
    archive.add("init", 0o100_755, INIT.as_bytes());
    let mut names = String::new();
    for file in files {
        let name = format!("{}.ko", module_name(&file));
        archive.add(
            &format!("modules/{name}"),
            0o100_644,
            &read_module(&unpacked.modules.join(&file))?,
        );
        names += &name;
        names.push('\n');
    }
    archive.add("modules/order", 0o100_644, names.as_bytes());
    Ok(archive.finish())
}

/// Files of `wanted` and of what they need, each after what it needs, from `modules.dep`.
fn load_order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut by_name: HashMap<String, (&str, Vec<&str>)> = HashMap::new();
    for line in dep.lines() {
        let Some((file, needs)) = line.split_once(':') else {
            continue;
        };
        // modules.dep lists the closure, nearest first; the farthest must be loaded first.
        by_name.insert(
            module_name(file),
            (file, needs.split_whitespace().rev().collect()),
        );
    }
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        if let Some((file, needs)) = by_name.get(*name) {
            for file in needs.iter().chain([file]) {
                if !order.iter().any(|known| known == file) {
                    order.push((*file).to_owned());
                }
            }
        } else if !builtin.lines().any(|file| module_name(file) == *name)
            && *name != "crc32c_generic"
        {
            bail!("the kernel has no {name}, neither as a module nor built in");
        }
    }
    Ok(order)
}

/// `kernel/fs/ext4/ext4.ko.xz` is `ext4`; `-` and `_` are the same to the kernel.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

/// A module's bytes, unpacked: busybox insmod does not know every compression.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(program).arg("-dc").arg(path).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} -dc {} failed: {}", path.display(), output.status);
    }
    Ok(output.stdout)
}

/// A cpio archive in the "newc" format the kernel unpacks.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        let header = [
            self.entries,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            content.len() as u32,
            0, // device major
            0, // device minor
            0, // special file major
            0, // special file minor
            name.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Cpio, load_order, module_name};

    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n\
                       kernel/fs/jbd2/jbd2.ko.xz:\n\
                       kernel/lib/crc16.ko.xz:\n\
                       kernel/drivers/block/virtio_blk.ko.xz:\n";

    #[test]
    fn dependencies_come_first_and_once() {
        let order = load_order(
            DEP,
            "kernel/fs/fuse/fuse.ko\n",
            &["virtio_blk", "ext4", "fuse"],
        );
        assert_eq!(
            order.unwrap(),
            [
                "kernel/drivers/block/virtio_blk.ko.xz",
                "kernel/lib/crc16.ko.xz",
                "kernel/fs/jbd2/jbd2.ko.xz",
                "kernel/fs/ext4/ext4.ko.xz"
            ]
        );
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = load_order(DEP, "", &["overlay"]).unwrap_err().to_string();
        assert!(error.contains("overlay"), "{error}");
    }

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(
            module_name("kernel/crypto/crc32c-intel.ko.zst"),
            "crc32c_intel"
        );
        assert_eq!(module_name("ext4.ko"), "ext4");
    }

    #[test]
    fn archives_are_aligned_and_closed() {
        let mut archive = Cpio::default();
        archive.add("init", 0o100_755, b"abc");
        let bytes = archive.finish();
        assert!(bytes.starts_with(b"070701"));
        assert_eq!(bytes.len() % 4, 0);
        // 110 bytes of header, the name and its end, padded to 116.
        assert_eq!(&bytes[116..120], b"abc\0");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
