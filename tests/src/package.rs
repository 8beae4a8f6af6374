//! Debian packages of the build under test, made by the script that releases are made with.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Name of the package.
pub const NAME: &str = "lxcfs-rs";
/// The version that the build under test has.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

const DEPLOY: &[(&str, &str)] = &[
    ("debian/build", include_str!("../../deploy/debian/build")),
    (
        "debian/control",
        include_str!("../../deploy/debian/control"),
    ),
    (
        "debian/postinst",
        include_str!("../../deploy/debian/postinst"),
    ),
    ("debian/prerm", include_str!("../../deploy/debian/prerm")),
    ("debian/postrm", include_str!("../../deploy/debian/postrm")),
    ("lxcfs.toml", include_str!("../../deploy/lxcfs.toml")),
    (
        "systemd/lxcfs.service",
        include_str!("../../deploy/systemd/lxcfs.service"),
    ),
];

/// Where packages are made.
pub struct Workshop(TempDir);

impl Workshop {
    /// Puts the files of `deploy/` in a directory of its own.
    ///
    /// # Panics
    /// When there is no room.
    #[allow(clippy::new_without_default, reason = "it writes files")]
    pub fn new() -> Self {
        let directory =
            TempDir::new().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        for (name, text) in DEPLOY {
            let path = directory.path().join("deploy").join(name);
            let written = fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))
                .and_then(|()| fs::write(&path, text));
            written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        Self(directory)
    }

    /// A package of the build under test, which calls itself `version` where it differs from
    /// [`VERSION`]; it must have as many characters.
    ///
    /// # Panics
    /// When `dpkg-deb` fails.
    pub fn make(&self, version: &str) -> PathBuf {
        let bytes = fs::read(crate::lxcfs_binary())
            .unwrap_or_else(|error| panic!("no lxcfs to pack: {error}"));
        self.pack(&called(bytes, version), version)
    }

    /// A package whose program ends at once, whatever it is asked.
    ///
    /// # Panics
    /// When `dpkg-deb` fails.
    pub fn make_broken(&self, version: &str) -> PathBuf {
        let bytes = fs::read("/bin/false").unwrap_or_else(|error| panic!("/bin/false: {error}"));
        self.pack(&bytes, version)
    }

    fn pack(&self, program: &[u8], version: &str) -> PathBuf {
        let binary = self.0.path().join(format!("lxcfs-{version}"));
        let written = fs::write(&binary, program)
            .and_then(|()| fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)));
        written.unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let mut build = Command::new("sh");
        build.arg(self.0.path().join("deploy/debian/build"));
        build
            .arg(&binary)
            .args([version, "amd64"])
            .arg(self.0.path());
        crate::stdout_of(&mut build);
        let _gone = fs::remove_file(binary);
        self.0.path().join(format!("{NAME}_{version}_amd64.deb"))
    }
}

/// The same program, but for the version in its texts.
fn called(mut bytes: Vec<u8>, version: &str) -> Vec<u8> {
    let (old, new) = (VERSION.as_bytes(), version.as_bytes());
    assert_eq!(old.len(), new.len(), "no room for {version} in the program");
    let places: Vec<usize> = (0..bytes.len().saturating_sub(old.len()))
        .filter(|at| bytes[*at..].starts_with(old))
        .collect();
    assert!(!places.is_empty(), "the program does not know its version");
    for at in places {
        bytes[at..at + new.len()].copy_from_slice(new);
    }
    bytes
}
