//! A dockerd of the test's own: no bridge, no packet filter, its own socket, storage and
//! state.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{TestCgroup, stdout_of};

/// Debian's packages that dockerd needs besides runc.
const PACKAGES: [&str; 4] = ["docker.io", "containerd", "tini", "libdevmapper1.02.1"];

/// Directories with dockerd and its helpers: the system's where it is installed, else
/// Debian's packages unpacked into the cache, without installing them.
fn programs() -> Vec<PathBuf> {
    // Tests run side by side, and a program that is still being written cannot be executed.
    static ONCE: OnceLock<Vec<PathBuf>> = OnceLock::new();
    ONCE.get_or_init(find_programs).clone()
}

fn find_programs() -> Vec<PathBuf> {
    let installed = Path::new("/usr/sbin/dockerd");
    if installed.exists() {
        return vec!["/usr/sbin".into(), "/usr/bin".into()];
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache"),
        PathBuf::from,
    );
    let root = cache.join("lxcfs/docker");
    if !root.join("usr/sbin/dockerd").exists() {
        let debs = TempDir::with_prefix("lxcfs-").expect("temporary directory");
        let remedy = "dockerd is missing and cannot be downloaded: apt-get install docker.io";
        let status = Command::new("apt-get")
            .args(["download", "-qq"])
            .args(PACKAGES)
            .current_dir(debs.path())
            .stderr(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "{remedy}");
        let partial = cache.join(format!("lxcfs/docker.{}", std::process::id()));
        for deb in std::fs::read_dir(debs.path()).expect("downloads").flatten() {
            stdout_of(Command::new("dpkg").arg("-x").arg(deb.path()).arg(&partial));
        }
        // Whole or not at all; what an interrupted run left is in the way.
        let _ = std::fs::remove_dir_all(&root);
        std::fs::rename(&partial, &root)
            .unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    }
    vec![root.join("usr/sbin"), root.join("usr/bin")]
}

/// A running dockerd; containers and all it made vanish with it.
#[derive(Debug)]
pub struct Docker {
    dir: TempDir,
    programs: Vec<PathBuf>,
    daemon: Option<Child>,
    cgroup: TestCgroup,
}

impl Default for Docker {
    fn default() -> Self {
        Self::new()
    }
}

impl Docker {
    /// Starts dockerd and loads the image `box:1`, which holds busybox and nothing else.
    ///
    /// # Panics
    /// When it does not come up; its last lines are in the message.
    pub fn new() -> Self {
        crate::require_root();
        let mut docker = Self {
            dir: TempDir::with_prefix("lxcfs-").expect("temporary directory"),
            programs: programs(),
            daemon: None,
            cgroup: TestCgroup::new("docker"),
        };
        docker.start();
        docker.load_image();
        docker
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// The socket it listens on.
    pub fn socket(&self) -> PathBuf {
        self.path("docker.sock")
    }

    fn command(&self, program: &str) -> Command {
        let own = std::env::var_os("PATH").unwrap_or_default();
        let paths = self
            .programs
            .iter()
            .cloned()
            .chain(std::env::split_paths(&own));
        let found = self.programs.iter().map(|dir| dir.join(program));
        let program = found.into_iter().find(|path| path.exists());
        let mut command = Command::new(program.expect("dockerd and docker"));
        command.env("PATH", std::env::join_paths(paths).expect("PATH"));
        command
    }

    /// Starts dockerd after [`Self::stop`].
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(&mut self) {
        let log = std::fs::File::create(self.path("log")).expect("log");
        let mut dockerd = self.command("dockerd");
        dockerd
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .arg("--data-root")
            .arg(self.path("data"))
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("--cgroup-parent")
            .arg(self.cgroup.path())
            .arg("--pidfile")
            .arg(self.path("pid"))
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args([
                "--storage-driver=vfs",
                "--exec-opt=native.cgroupdriver=cgroupfs",
            ])
            // Lower values need CAP_SYS_RESOURCE.
            .arg("--oom-score-adjust=0")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log);
        self.daemon = Some(dockerd.spawn().expect("dockerd"));
        let began = Instant::now();
        while !self
            .docker(&["version"])
            .output()
            .is_ok_and(|output| output.status.success())
        {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(began.elapsed() < Duration::from_secs(60), "dockerd:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops dockerd, and with it the containers.
    pub fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        if let Ok(pid) = i32::try_from(daemon.id()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = daemon.wait();
    }

    fn load_image(&self) {
        let root = self.path("image");
        for below in ["bin", "proc", "sys", "dev", "etc"] {
            std::fs::create_dir_all(root.join(below)).expect("image");
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox"))
            .expect("the static busybox of Debian's busybox-static");
        let layer = self.path("layer.tar");
        stdout_of(
            Command::new("tar")
                .arg("-C")
                .arg(&root)
                .arg("-cf")
                .arg(&layer)
                .arg("."),
        );
        let sum = stdout_of(Command::new("sha256sum").arg(&layer));
        let digest = sum.split(' ').next().unwrap_or("");
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/bin/busybox","sleep","100000"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
        );
        let manifest = r#"[{"Config":"config.json","RepoTags":["box:1"],"Layers":["layer.tar"]}]"#;
        std::fs::write(self.path("config.json"), config).expect("image");
        std::fs::write(self.path("manifest.json"), manifest).expect("image");
        let archive = self.path("image.tar");
        stdout_of(
            Command::new("tar")
                .arg("-C")
                .arg(self.dir.path())
                .arg("-cf")
                .arg(&archive)
                .args(["config.json", "manifest.json", "layer.tar"]),
        );
        stdout_of(self.docker(&["load", "-q", "-i"]).arg(&archive));
    }

    /// A docker command against this dockerd.
    pub fn docker(&self, arguments: &[&str]) -> Command {
        let mut docker = self.command("docker");
        docker
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .args(arguments)
            .stdin(Stdio::null());
        docker
    }

    /// Starts a container in the background.
    ///
    /// # Panics
    /// When docker fails.
    pub fn run(&self, name: &str, options: &[&str]) {
        let mut run = self.docker(&["run", "-d", "--network=none", "--name", name]);
        stdout_of(run.args(options).arg("box:1"));
    }

    /// The content of a file as a process in the container reads it.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn read(&self, name: &str, file: &str) -> String {
        stdout_of(&mut self.docker(&["exec", name, "/bin/busybox", "cat", file]))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let listed = self.docker(&["ps", "-aq"]).output();
        let ids = listed.map(|output| output.stdout).unwrap_or_default();
        let ids = String::from_utf8_lossy(&ids).into_owned();
        let mut remove = self.docker(&["rm", "-f"]);
        let _ = remove.args(ids.split_whitespace()).output();
        self.stop();
        // vfs and the shims leave bind mounts when they are in a hurry.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = self.dir.path().to_string_lossy().into_owned();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if mount.starts_with(&own) {
                let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}
