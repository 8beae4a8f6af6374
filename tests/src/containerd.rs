//! containerd with its CRI and NRI on a directory of its own, pods in it, and their logs.
//!
//! Images are made here and hold one static program, `static/first-look.rs`. Pods have networks
//! of a plugin that does nothing.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Place;
use crate::cri::{Cri, api, api::mode};

/// Where the root image of the virtual machines has containerd 2 with its shim.
const PROGRAMS: &str = "/opt/containerd-sid/usr/bin";
/// A runc that knows idmapped mounts, which containerd asks for.
const RUNC: &str = "/opt/runc-sid/usr/sbin/runc";
/// The one image.
const IMAGE: &str = "localhost/first-look:1";
const FIRST_LOOK: &[u8] = include_bytes!(env!("FIRST_LOOK"));
/// First user of the node that pods with user namespaces get.
const FIRST_USER: u32 = 1_000_000;
/// The annotation that asks for a view.
pub const ASK: (&str, &str) = ("lxcfs/inject", "true");
/// Most time anything here may take on an emulated machine before the test says that it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running containerd.
pub struct Containerd {
    directory: Place,
    child: Child,
    cri: Cri,
    pods: Vec<String>,
}

/// What a pod with one container is; the default is any pod's.
#[derive(Clone, Debug, Default)]
pub struct Pod<'a> {
    /// Its name, and its container's.
    pub name: &'a str,
    /// A runtime of the configuration: empty (runc) or `crun`.
    pub runtime: &'a str,
    /// Pod Security `restricted`, with a root file system that cannot be written.
    pub restricted: bool,
    /// `hostUsers: false`.
    pub user_namespace: bool,
    /// Its annotations.
    pub annotations: &'a [(&'a str, &'a str)],
    /// Verb and files for `first-look`.
    pub arguments: &'a [&'a str],
}

/// A started container.
#[derive(Debug)]
pub struct Started {
    id: String,
    log: PathBuf,
}

impl Started {
    /// What it has written so far.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        // Time, stream, whether the line is whole; then what was written.
        let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// What it saw first of all.
    ///
    /// # Panics
    /// When it does not tell in time.
    pub fn first_look(&self) -> Look {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if let Some((look, _)) = log.split_once("looked\n") {
                return Look(look.to_owned());
            }
            assert!(Instant::now() < end, "no first look: {log:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until it has read everything some times more.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn reads_on(&self) {
        let rounds = || self.log().matches("\nround ").count();
        let (before, end) = (rounds(), Instant::now() + PATIENCE);
        while rounds() < before + 2 {
            assert!(Instant::now() < end, "it reads no more: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What a container saw at one time.
#[derive(Clone, Debug)]
pub struct Look(String);

impl Look {
    /// The content of a file.
    ///
    /// # Panics
    /// When it could not read it.
    pub fn file(&self, path: &str) -> &str {
        let (_, rest) = self
            .0
            .split_once(&format!("file {path}\n"))
            .unwrap_or_else(|| panic!("{path} was not read:\n{}", self.0));
        let end = ["\nfile /", "\nfailed /", "\nlooked\n"]
            .iter()
            .filter_map(|next| rest.find(next));
        rest.get(..end.min().map_or(rest.len(), |at| at + 1))
            .unwrap_or_default()
    }

    /// The reads that failed.
    pub fn failures(&self) -> Vec<&str> {
        let lines = self.0.lines();
        lines.filter(|line| line.starts_with("failed ")).collect()
    }
}

impl Containerd {
    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// When it does not; the message holds its log.
    pub fn start() -> Self {
        Self::start_in(Place::temporary("lxcfs-containerd-"))
    }

    /// The same in a directory that an earlier one may have left.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_in(directory: Place) -> Self {
        crate::require_root();
        let described = directory.path().join("config.toml");
        let is_new = !described.exists();
        if is_new {
            make(directory.path());
            open(directory.path());
            write(&described, config(directory.path()));
            network(directory.path());
        }
        let child = spawn(directory.path());
        let mut containerd = Self {
            cri: Cri::new(&directory.path().join("containerd.sock")),
            directory,
            child,
            pods: Vec::new(),
        };
        containerd.wait_until_served();
        if is_new {
            containerd.import();
        }
        containerd
    }

    /// Its NRI socket.
    pub fn nri(&self) -> PathBuf {
        self.directory.path().join("nri.sock")
    }

    /// The warnings and errors that it has logged so far.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.contains(" level=info "));
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// Kills it and starts it again; its containers go on.
    pub fn restart(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        self.child = spawn(self.directory.path());
        self.wait_until_served();
    }

    fn wait_until_served(&mut self) {
        let end = Instant::now() + PATIENCE;
        // Its version is answered early; a list of pods only when it has found its old ones.
        while let Err(error) = self
            .cri
            .try_call::<_, api::Empty>("ListPodSandbox", api::Empty {})
        {
            let ended = self.child.try_wait();
            assert!(
                matches!(ended, Ok(None)) && Instant::now() < end,
                "containerd does not serve ({ended:?}): {error}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Makes the image and gives it to containerd.
    fn import(&self) {
        let archive = self.directory.path().join("image.tar");
        image(&self.directory.path().join("image"), &archive);
        let mut import = Command::new(Path::new(PROGRAMS).join("ctr"));
        import
            .arg("--address")
            .arg(self.directory.path().join("containerd.sock"))
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(archive);
        crate::stdout_of(&mut import);
    }

    /// Starts a pod and its container: 128 MiB of memory, half a CPU.
    ///
    /// # Panics
    /// With containerd's answer when it refuses.
    pub fn run(&mut self, pod: &Pod<'_>) -> Started {
        let config = self.sandbox(pod);
        let request = api::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: pod.runtime.to_owned(),
        };
        let sandbox: api::Id = self.cri.call("RunPodSandbox", request);
        self.pods.push(sandbox.id.clone());
        let security = api::LinuxContainerSecurityContext {
            namespace_options: Some(namespaces(pod)),
            masked_paths: MASKED.map(str::to_owned).to_vec(),
            readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
            ..api::LinuxContainerSecurityContext::default()
        };
        let security = if pod.restricted {
            api::LinuxContainerSecurityContext {
                capabilities: Some(api::Capability {
                    drop_capabilities: vec!["ALL".to_owned()],
                }),
                run_as_user: Some(api::Int64Value { value: 65532 }),
                readonly_rootfs: true,
                no_new_privs: true,
                seccomp: Some(api::SecurityProfile::default()),
                ..security
            }
        } else {
            security
        };
        let container = api::ContainerConfig {
            metadata: Some(api::ContainerMetadata {
                name: pod.name.to_owned(),
            }),
            image: Some(api::ImageSpec {
                image: IMAGE.to_owned(),
            }),
            command: vec!["/first-look".to_owned()],
            args: pod.arguments.iter().map(|&word| word.to_owned()).collect(),
            log_path: "log".to_owned(),
            linux: Some(api::LinuxContainerConfig {
                resources: Some(limits(128 << 20)),
                security_context: Some(security),
            }),
        };
        let log = Path::new(&config.log_directory).join("log");
        let request = api::CreateContainerRequest {
            pod_sandbox_id: sandbox.id,
            config: Some(container),
            sandbox_config: Some(config),
        };
        let created: api::Id = self.cri.call("CreateContainer", request);
        let _: api::Empty = self.cri.call("StartContainer", created.clone());
        Started {
            id: created.id,
            log,
        }
    }

    fn sandbox(&self, pod: &Pod<'_>) -> api::PodSandboxConfig {
        let log_directory = self.directory.path().join("logs").join(pod.name);
        make(&log_directory);
        let annotations = pod.annotations.iter();
        let security = api::LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(pod)),
            run_as_user: pod.restricted.then_some(api::Int64Value { value: 65532 }),
            readonly_rootfs: pod.restricted,
            seccomp: Some(api::SecurityProfile::default()),
        };
        api::PodSandboxConfig {
            metadata: Some(api::PodSandboxMetadata {
                name: pod.name.to_owned(),
                uid: format!("uid-{}", pod.name),
                namespace: "default".to_owned(),
            }),
            log_directory: log_directory.to_string_lossy().into_owned(),
            annotations: annotations
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<HashMap<_, _>>(),
            linux: Some(api::LinuxPodSandboxConfig {
                cgroup_parent: format!("/kubepods/pod-{}", pod.name),
                security_context: Some(security),
            }),
        }
    }

    /// Changes a running container's memory limit, as an in-place resize does.
    pub fn resize(&self, container: &Started, bytes: i64) {
        let request = api::UpdateContainerResourcesRequest {
            container_id: container.id.clone(),
            linux: Some(limits(bytes)),
        };
        let _: api::Empty = self.cri.call("UpdateContainerResources", request);
    }

    /// What a process started in a running container sees.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn look(&self, container: &Started, files: &[&str]) -> Look {
        let program = ["/first-look", "look"];
        let request = api::ExecSyncRequest {
            container_id: container.id.clone(),
            cmd: program.iter().chain(files).map(|&w| w.to_owned()).collect(),
            timeout: 60,
        };
        let answer: api::ExecSyncResponse = self.cri.call("ExecSync", request);
        assert_eq!(
            answer.exit_code,
            0,
            "{}",
            String::from_utf8_lossy(&answer.stderr)
        );
        Look(String::from_utf8_lossy(&answer.stdout).into_owned())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for pod in &self.pods {
            for method in ["StopPodSandbox", "RemovePodSandbox"] {
                let gone: Result<api::Empty, _> =
                    self.cri.try_call(method, api::Id { id: pod.clone() });
                if let Err(status) = gone {
                    eprintln!("{method}: {status}");
                }
            }
        }
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            eprintln!("containerd's log:\n{}", self.log());
        }
        // It leaves its temporary mounts.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = self.directory.path().to_string_lossy().into_owned();
        let below = mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(1));
        for mount in below.filter(|mount| mount.starts_with(&own)) {
            let _gone = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// What kubelet hides from containers.
const MASKED: [&str; 5] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/timer_list",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

fn limits(bytes: i64) -> api::LinuxContainerResources {
    api::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit_in_bytes: bytes,
    }
}

fn namespaces(pod: &Pod<'_>) -> api::NamespaceOption {
    let all = api::IdMapping {
        host_id: FIRST_USER,
        container_id: 0,
        length: 65536,
    };
    api::NamespaceOption {
        network: mode::POD,
        pid: mode::CONTAINER,
        userns_options: pod.user_namespace.then(|| api::UserNamespace {
            mode: mode::POD,
            uids: vec![all],
            gids: vec![all],
        }),
    }
}

fn spawn(directory: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .unwrap_or_else(|error| panic!("no log: {error}"));
    let other = log
        .try_clone()
        .unwrap_or_else(|error| panic!("no log: {error}"));
    let path = std::env::var("PATH").unwrap_or_default();
    let program = Path::new(PROGRAMS).join("containerd");
    Command::new(&program)
        .arg("--config")
        .arg(directory.join("config.toml"))
        // It looks for its shim there.
        .env("PATH", format!("{PROGRAMS}:{path}"))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(other)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

fn config(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"version = 3
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{directory}/containerd.sock"
[ttrpc]
address = "{directory}/containerd.sock.ttrpc"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{directory}/cni"]
conf_dir = "{directory}/cni.d"
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
options = {{ BinaryName = "{RUNC}", SystemdCgroup = false }}
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
options = {{ BinaryName = "crun", SystemdCgroup = false }}
[plugins.'io.containerd.nri.v1.nri']
socket_path = "{directory}/nri.sock"
"#
    )
}

/// A network plugin that gives every pod the same address and nothing to use it with.
fn network(directory: &Path) {
    let (place, described) = (directory.join("cni"), directory.join("cni.d"));
    make(&place);
    make(&described);
    write(
        &described.join("10-nothing.conflist"),
        r#"{"cniVersion": "1.0.0", "name": "nothing", "plugins": [{"type": "nothing"}]}"#,
    );
    let answer = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"192.0.2.2/24","interface":0}]}"#;
    let script = format!(
        "#!/bin/sh\ncat >/dev/null\ncase $CNI_COMMAND in\n\
         VERSION) echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\"]}}' ;;\n\
         ADD) echo '{answer}' ;;\nesac\n"
    );
    for name in ["nothing", "loopback"] {
        write(&place.join(name), &script);
        open(&place.join(name));
    }
}

/// An OCI image whose only file is `first-look`, as a tar archive.
fn image(place: &Path, archive: &Path) {
    let layer = place.join("layer");
    make(&layer);
    write(&layer.join("first-look"), FIRST_LOOK);
    open(&layer.join("first-look"));
    for mountpoint in ["dev", "etc", "proc", "sys"] {
        make(&layer.join(mountpoint));
    }
    let tar = |from: &Path, to: &Path| {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--owner=0", "--group=0", "--file"])
            .arg(to);
        crate::stdout_of(tar.arg("--directory").arg(from).arg("."));
    };
    let blobs = place.join("oci/blobs/sha256");
    make(&blobs);
    let fresh = place.join("fresh");
    // Moves a file to where its digest says; its digest and size.
    let add = |file: &Path| {
        let sum = crate::stdout_of(Command::new("sha256sum").arg(file));
        let digest = sum.split(' ').next().unwrap_or_default().to_owned();
        let size = fs::metadata(file).map_or(0, |metadata| metadata.len());
        fs::rename(file, blobs.join(&digest)).unwrap_or_else(|error| panic!("{error}"));
        format!(r#""digest":"sha256:{digest}","size":{size}"#)
    };
    tar(&layer, &fresh);
    let layer = add(&fresh);
    let diff = layer.split('"').nth(3).unwrap_or_default().to_owned();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    write(
        &fresh,
        format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"Entrypoint":["/first-look","pause"]}},"rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#
        ),
    );
    let config = add(&fresh);
    let oci = "application/vnd.oci.image";
    write(
        &fresh,
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{oci}.manifest.v1+json","config":{{"mediaType":"{oci}.config.v1+json",{config}}},"layers":[{{"mediaType":"{oci}.layer.v1.tar",{layer}}}]}}"#
        ),
    );
    let manifest = add(&fresh);
    write(
        &place.join("oci/oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    write(
        &place.join("oci/index.json"),
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{oci}.manifest.v1+json",{manifest},"annotations":{{"io.containerd.image.name":"{IMAGE}"}}}}]}}"#
        ),
    );
    tar(&place.join("oci"), archive);
}

fn make(directory: &Path) {
    fs::create_dir_all(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
}

fn write(file: &Path, content: impl AsRef<[u8]>) {
    fs::write(file, content).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// Lets everybody in, as users of containers are nobody here.
pub fn open(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o755))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
