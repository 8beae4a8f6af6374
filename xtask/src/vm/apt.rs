//! Debian packages of any suite through private lists: the system's apt sources stay untouched.
//!
//! apt checks the archive's signature against the Debian keyring when it reads the lists, and
//! each package against the lists when it downloads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cache::Cache;
use super::mirror::{self, Mirror};
use crate::command::{output, run};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite's private package lists.
pub(crate) struct Suite {
    name: &'static str,
    architecture: &'static str,
    // Source packages instead of built ones.
    sources: bool,
    state: PathBuf,
}

impl Suite {
    /// Fetches the lists of `name` (and of its security archive) into the cache.
    pub(crate) fn fetch(cache: &Cache, name: &'static str) -> Result<Self> {
        Self {
            name,
            architecture: "amd64",
            sources: false,
            state: cache.path(&format!("apt/{name}")),
        }
        .update()
    }

    /// The same for packages of arm64.
    pub(crate) fn fetch_arm64(cache: &Cache, name: &'static str) -> Result<Self> {
        Self {
            name,
            architecture: "arm64",
            sources: false,
            state: cache.path(&format!("apt/{name}-arm64")),
        }
        .update()
    }

    /// The same for source packages.
    pub(crate) fn fetch_sources(cache: &Cache, name: &'static str) -> Result<Self> {
        Self {
            name,
            architecture: "amd64",
            sources: true,
            state: cache.path(&format!("apt/{name}-sources")),
        }
        .update()
    }

    fn update(self) -> Result<Self> {
        let name = self.name;
        let suite = self;
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(suite.state.join(directory))?;
        }
        fs::write(suite.state.join("status"), "")?;
        let mut lines = sources(name, &mirror::find()?);
        if suite.sources {
            lines = lines.replace("deb [", "deb-src [");
        }
        fs::write(suite.state.join("sources.list"), lines)?;
        println!("Fetching the package lists of Debian {name}");
        run(suite.apt("apt-get").args(["update", "-qq"]))
            .with_context(|| format!("cannot read the package lists of Debian {name}"))?;
        Ok(suite)
    }

    /// The packages that `package` depends on: the first alternative of each, without versions.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let record = output(
            self.apt("apt-cache")
                .args(["show", "--no-all-versions", package]),
        )
        .with_context(|| format!("Debian {} has no package {package}", self.name))?;
        Ok(parse_depends(&record))
    }

    /// The names of packages that start with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let listing = output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(listing.lines().map(str::to_owned).collect())
    }

    /// Everything that apt would install for `packages` on an empty system, by name.
    pub(crate) fn needed_for(&self, packages: &[&str]) -> Result<Vec<String>> {
        let listing = output(
            self.apt("apt-get")
                .args([
                    "install",
                    "--yes",
                    "--print-uris",
                    "--no-install-recommends",
                ])
                .args(packages),
        )
        .with_context(|| format!("Debian {} cannot install {packages:?}", self.name))?;
        Ok(parse_uris(&listing))
    }

    /// Downloads packages into `directory`, checked against the signed lists.
    pub(crate) fn download(&self, packages: &[String], directory: &Path) -> Result<Vec<PathBuf>> {
        println!(
            "Downloading from Debian {}: {}",
            self.name,
            packages.join(" ")
        );
        fs::create_dir_all(directory)?;
        let mut download = self.apt("apt-get");
        run(download
            .current_dir(directory)
            .args(["download", "-qq"])
            .args(packages))?;
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                files.push(path);
            }
        }
        if files.len() != packages.len() {
            bail!("asked for {} packages, got {files:?}", packages.len());
        }
        Ok(files)
    }

    /// Downloads packages and unpacks them, without running their scripts, below `root`.
    pub(crate) fn unpack(&self, packages: &[String], root: &Path) -> Result<()> {
        let debs = root.join(".debs");
        for file in self.download(packages, &debs)? {
            run(Command::new("dpkg").arg("-x").arg(file).arg(root))?;
        }
        fs::remove_dir_all(debs)?;
        Ok(())
    }

    /// Downloads a source package, checked against the signed lists, and unpacks it with
    /// Debian's patches into a directory below `directory`.
    pub(crate) fn source(&self, package: &str, directory: &Path) -> Result<PathBuf> {
        println!(
            "Downloading the source of {package} from Debian {}",
            self.name
        );
        run(self.apt("apt-get").current_dir(directory).args([
            "source",
            "-qq",
            "--download-only",
            package,
        ]))?;
        let mut descriptions = fs::read_dir(directory)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "dsc"));
        let Some(description) = descriptions.next() else {
            bail!(
                "apt-get left no .dsc file of {package} in {}",
                directory.display()
            );
        };
        let tree = directory.join("source");
        // apt has checked the signature already; dpkg-source would want the uploader's key.
        run(Command::new("dpkg-source")
            .args(["--no-check", "-x"])
            .arg(&description)
            .arg(&tree))
        .context("cannot unpack a source package: apt-get install dpkg-dev")?;
        Ok(tree)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: &str| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let below = |name: &str| self.state.join(name).display().to_string();
        option("Dir::Etc::SourceList", &below("sources.list"));
        option("Dir::Etc::SourceParts", "/dev/null");
        option("Dir::State::Lists", &below("lists"));
        option("Dir::State::status", &below("status"));
        option("Dir::Cache", &below("cache"));
        option("APT::Architecture", self.architecture);
        option("APT::Architectures", self.architecture);
        // The cache usually sits below a home directory that the user _apt cannot enter.
        option("APT::Sandbox::User", "root");
        option("Acquire::Retries", "5");
        option("Acquire::Languages", "none");
        option(
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
            "false",
        );
        command
    }
}

/// The lines of a sources.list; unstable and backports have no security archive.
fn sources(suite: &str, mirror: &Mirror) -> String {
    let Mirror { debian, security } = mirror;
    let mut lines = format!("deb [signed-by={KEYRING}] {debian} {suite} main\n");
    if suite != "sid" && !suite.ends_with("-backports") {
        lines += &format!("deb [signed-by={KEYRING}] {security} {suite}-security main\n");
    }
    lines
}

/// Package names out of lines like `'http://…/name_version_arch.deb' file size hash`.
fn parse_uris(listing: &str) -> Vec<String> {
    listing
        .lines()
        .filter_map(|line| line.strip_prefix('\'')?.split_once("' "))
        .filter_map(|(uri, _)| uri.rsplit_once('/')?.1.split_once('_'))
        .map(|(name, _)| name.replace("%2b", "+"))
        .collect()
}

fn parse_depends(record: &str) -> Vec<String> {
    record
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))
        .unwrap_or_default()
        .split(", ")
        .filter_map(|dependency| dependency.split([' ', ':', '|']).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Mirror, parse_depends, parse_uris, sources};

    #[test]
    fn depends_are_bare_names() {
        let record = "Package: linux-image-7.2.13+deb14-cloud-amd64\nDepends: dracut | \
                      initramfs-tools (>= 0.120), linux-base-7.2.13 (= 7.2.13-1), perl:any\n\
                      Description: Depends: nothing\n";
        assert_eq!(
            parse_depends(record),
            ["dracut", "linux-base-7.2.13", "perl"]
        );
        assert!(parse_depends("Package: essential\n").is_empty());
    }

    #[test]
    fn names_come_from_what_apt_would_fetch() {
        let listing = "Reading package lists...\n'http://deb.debian.org/debian/pool/main/g/go/\
                       golang-go_1.27_amd64.deb' golang-go_2%3a1.27_amd64.deb 43 MD5Sum:0\n";
        assert_eq!(parse_uris(listing), ["golang-go"]);
    }

    #[test]
    fn every_source_is_signed() {
        for suite in ["bullseye", "sid", "trixie-backports"] {
            let mirror = Mirror {
                debian: "http://mirror.example/debian".into(),
                security: "http://mirror.example/debian-security".into(),
            };
            let sources = sources(suite, &mirror);
            assert!(
                sources
                    .lines()
                    .all(|line| line.starts_with("deb [signed-by=/usr/share/"))
            );
            assert_eq!(sources.contains("security"), suite == "bullseye");
        }
    }
}
