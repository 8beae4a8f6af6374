//! Which hierarchies the machine has and which of them holds each controller, from
//! `/proc/self/mountinfo`. Pure; a layout is a value, so that tests state it.
//!
//! v1, v2 and hybrid are not modes: every controller is found on its own. On a hybrid
//! machine the v2 tree may hold no controller at all and still name the containers.

use std::path::{Path, PathBuf};

use crate::snapshot::Controller;

/// Which interface a hierarchy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// cgroup v1: one mount per set of controllers.
    V1,
    /// cgroup v2: the one unified tree.
    V2,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its interface.
    pub version: Version,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Names as `/proc/PID/cgroup` has them: v1 controllers or `name=…`; for v2 what
    /// `cgroup.controllers` of its root lists.
    pub names: Vec<String>,
}

/// Index into [`Layout::hierarchies`].
pub type HierarchyIndex = usize;

/// All hierarchies and who owns what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Every hierarchy once.
    pub hierarchies: Vec<Hierarchy>,
    /// By [`Controller`] discriminant; [`Controller::Unified`] is the v2 tree, whether or
    /// not it has controllers, else `None`.
    by_controller: [Option<HierarchyIndex>; 8],
    /// Root of the cgroup namespace that paths of the v2 tree are read from, as the host has
    /// it; `None` in the host's own.
    read_from: Option<Box<str>>,
}

/// A machine whose cgroups cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No cgroup file system in mountinfo.
    #[error(
        "no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup, or give the daemon \
         the host's /sys/fs/cgroup"
    )]
    NotMounted,
    /// The mount shows a part of the hierarchy only.
    #[error(
        "{mount_point} shows only the part {root} of its hierarchy: the daemon runs in a \
         cgroup namespace of its own, or got a bind mount of a child; give it the host's \
         cgroup namespace (docker: --cgroupns=host) and /sys/fs/cgroup"
    )]
    Partial {
        /// Where it is mounted.
        mount_point: String,
        /// Its root inside the hierarchy.
        root: String,
    },
}

/// Name of a controller in v1 mount options, `/proc/PID/cgroup` and v2 `cgroup.controllers`.
#[must_use]
pub const fn v1_name(controller: Controller) -> &'static str {
    match controller {
        Controller::Memory => "memory",
        Controller::Cpu => "cpu",
        Controller::Cpuacct => "cpuacct",
        Controller::Cpuset => "cpuset",
        Controller::Io => "blkio",
        Controller::Hugetlb => "hugetlb",
        Controller::Pids => "pids",
        Controller::Unified => "",
    }
}

/// One cgroup mount of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CgroupMount<'a> {
    version: Version,
    root: &'a str,
    mount_point: String,
    options: &'a str,
    device: &'a str,
}

impl CgroupMount<'_> {
    /// Its root as the host has it, read from the namespace with the v2 root `read_from`.
    fn root_from(&self, read_from: Option<&str>) -> String {
        let root = unescape(self.root);
        match (read_from, self.version) {
            (Some(from), Version::V2) => absolute(from, &root),
            _ => root,
        }
    }
}

/// `path` as the kernel prints it inside the cgroup namespace whose root is `root`, as the
/// host has it: what is not below the root begins with one `/..` for each step up.
#[must_use]
pub fn absolute(root: &str, path: &str) -> String {
    let mut whole: Vec<&str> = root.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        match part {
            ".." => drop(whole.pop()),
            _ => whole.push(part),
        }
    }
    format!("/{}", whole.join("/"))
}

fn mounts(mountinfo: &str) -> impl Iterator<Item = CgroupMount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let (device, root, mount_point) = (mount.next()?, mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let version = match file_system.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        Some(CgroupMount {
            version,
            root,
            mount_point: unescape(mount_point),
            options: file_system.nth(1).unwrap_or(""),
            device,
        })
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4);
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

impl Layout {
    /// Finds the hierarchies in the text of a mountinfo. `v2_controllers` gives the text of
    /// `cgroup.controllers` of the v2 root at the given mount point (empty if unreadable).
    ///
    /// # Errors
    /// When there is none, or one is mounted only in part.
    pub fn detect(
        mountinfo: &str,
        v2_controllers: impl FnMut(&Path) -> String,
    ) -> Result<Self, LayoutError> {
        Self::detect_from(None, mountinfo, v2_controllers)
    }

    /// The same for a reader in a cgroup namespace of its own, whose root in the v2 tree is
    /// known: mountinfo and `/proc/PID/cgroup` name everything relative to it.
    ///
    /// # Errors
    /// As [`detect`](Self::detect).
    pub fn detect_from(
        read_from: Option<&str>,
        mountinfo: &str,
        mut v2_controllers: impl FnMut(&Path) -> String,
    ) -> Result<Self, LayoutError> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        let mut devices: Vec<&str> = Vec::new();
        let mut partial = None;
        for mount in mounts(mountinfo) {
            // A bind mount of the same hierarchy adds nothing.
            if devices.contains(&mount.device) {
                continue;
            }
            if mount.root_from(read_from) != "/" {
                partial.get_or_insert(LayoutError::Partial {
                    mount_point: mount.mount_point,
                    root: mount.root.to_owned(),
                });
                continue;
            }
            devices.push(mount.device);
            let mount_point = PathBuf::from(mount.mount_point);
            let names = match mount.version {
                Version::V1 => mount
                    .options
                    .split(',')
                    .filter(|option| is_hierarchy_name(option))
                    .map(str::to_owned)
                    .collect(),
                Version::V2 => v2_controllers(&mount_point)
                    .split_ascii_whitespace()
                    .map(str::to_owned)
                    .collect(),
            };
            hierarchies.push(Hierarchy {
                version: mount.version,
                mount_point,
                names,
            });
        }
        if hierarchies.is_empty() {
            return Err(partial.unwrap_or(LayoutError::NotMounted));
        }
        Ok(Self {
            read_from: read_from.map(Into::into),
            ..Self::new(hierarchies)
        })
    }

    /// The layout of the given hierarchies: each controller is where v1 has it, else in
    /// the v2 tree if that lists it.
    #[must_use]
    pub fn new(hierarchies: Vec<Hierarchy>) -> Self {
        let v2 = hierarchies
            .iter()
            .position(|hierarchy| hierarchy.version == Version::V2);
        let by_controller = Controller::ALL.map(|controller| {
            let name = v1_name(controller);
            let in_v1 = hierarchies.iter().position(|hierarchy| {
                hierarchy.version == Version::V1 && hierarchy.names.iter().any(|n| n == name)
            });
            let v2_has = |name: &str| {
                v2.filter(|at| hierarchies[*at].names.iter().any(|found| found == name))
            };
            match controller {
                Controller::Unified => v2,
                Controller::Io => in_v1.or_else(|| v2_has("io")),
                // v2 accounts CPU time without any controller (cpu.stat of the core).
                Controller::Cpuacct => in_v1.or(v2),
                _ => in_v1.or_else(|| v2_has(name)),
            }
        });
        Self {
            hierarchies,
            by_controller,
            read_from: None,
        }
    }

    /// Where `controller` lives.
    #[must_use]
    pub const fn index_of(&self, controller: Controller) -> Option<HierarchyIndex> {
        self.by_controller[controller as usize]
    }

    /// The hierarchy of `controller`.
    #[must_use]
    pub fn hierarchy_of(&self, controller: Controller) -> Option<&Hierarchy> {
        self.index_of(controller).map(|at| &self.hierarchies[at])
    }

    /// The v2 tree, if there is one.
    #[must_use]
    pub const fn v2(&self) -> Option<HierarchyIndex> {
        self.by_controller[Controller::Unified as usize]
    }

    /// Whether v2 is the only hierarchy, so that a v2 cgroup id says everything.
    #[must_use]
    pub fn is_pure_v2(&self) -> bool {
        self.hierarchies
            .iter()
            .all(|hierarchy| hierarchy.version == Version::V2)
    }

    /// What to call it in messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match (self.v2(), self.is_pure_v2()) {
            (Some(_), true) => "v2",
            (Some(_), false) => "hybrid",
            (None, _) => "v1",
        }
    }

    /// The path in every hierarchy from the text of a `/proc/PID/cgroup`; `None` where the
    /// file has no line for it. Paths are as the kernel prints them, ` (deleted)` removed.
    #[must_use]
    pub fn paths(&self, proc_cgroup: &str) -> Vec<Option<Box<str>>> {
        let mut paths = vec![None; self.hierarchies.len()];
        for line in proc_cgroup.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let at = if id == "0" && names.is_empty() {
                self.v2()
            } else {
                let first = names.split(',').next().unwrap_or("");
                self.hierarchies.iter().position(|hierarchy| {
                    hierarchy.version == Version::V1
                        && hierarchy.names.iter().any(|name| name == first)
                })
            };
            if let Some(at) = at
                && path.starts_with('/')
            {
                let path = path.strip_suffix(" (deleted)").unwrap_or(path);
                paths[at] = Some(match &self.read_from {
                    Some(root) if Some(at) == self.v2() => absolute(root, path).into(),
                    _ => path.into(),
                });
            }
        }
        paths
    }

    /// The root of a process's cgroup namespace in every hierarchy, as far as the cgroup mounts
    /// in its own mountinfo tell: a runtime mounts the namespace's root. `paths` are the
    /// process's own. `None` when no mount tells.
    #[must_use]
    pub fn mounted_roots(
        &self,
        mountinfo: &str,
        paths: &[Option<Box<str>>],
    ) -> Option<Vec<Option<Box<str>>>> {
        let mut roots: Vec<Option<Box<str>>> = vec![None; paths.len()];
        for mount in mounts(mountinfo) {
            let at = match mount.version {
                Version::V2 => self.v2(),
                Version::V1 => self.hierarchies.iter().position(|hierarchy| {
                    let named = |option| hierarchy.names.iter().any(|name| name == option);
                    hierarchy.version == Version::V1 && mount.options.split(',').any(named)
                }),
            };
            let Some(at) = at else { continue };
            let root = mount.root_from(self.read_from.as_deref());
            let own = paths.get(at).and_then(Option::as_deref);
            let above = own.and_then(|own| own.strip_prefix(&*root));
            // The host's whole tree, given to the container, tells nothing.
            if root == "/" || !above.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                continue;
            }
            let known = &mut roots[at];
            if known.as_ref().is_none_or(|known| root.len() < known.len()) {
                *known = Some(root.into());
            }
        }
        roots.iter().any(Option::is_some).then_some(roots)
    }
}

/// The root of a cgroup namespace, from the path of one process as the host sees it and as
/// that namespace sees it. `None` when the process has been moved out of the namespace's
/// root, so that its path there starts with `/..`.
#[must_use]
pub fn namespace_root<'a>(host_path: &'a str, inside: &str) -> Option<&'a str> {
    if inside == "/" {
        return Some(host_path);
    }
    if inside.starts_with("/..") || !inside.starts_with('/') {
        return None;
    }
    match host_path.strip_suffix(inside)? {
        "" => Some("/"),
        root => Some(root),
    }
}

/// Mount options of a v1 hierarchy that are not its names.
fn is_hierarchy_name(option: &str) -> bool {
    !matches!(
        option,
        "" | "rw"
            | "ro"
            | "xattr"
            | "noprefix"
            | "clone_children"
            | "cpuset_v2_mode"
            | "none"
            | "seclabel"
            | "favordynmods"
            | "nofavordynmods"
    ) && !option.starts_with("release_agent=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V1: &str = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/systemd rw,nosuid shared:10 - cgroup cgroup rw,xattr,release_agent=/lib/systemd/systemd-cgroups-agent,name=systemd
32 30 0:30 / /sys/fs/cgroup/memory rw,nosuid shared:11 - cgroup cgroup rw,memory
33 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:12 - cgroup cgroup rw,cpu,cpuacct
34 30 0:32 / /sys/fs/cgroup/blkio rw,nosuid shared:13 - cgroup cgroup rw,blkio
35 30 0:33 / /sys/fs/cgroup/cpuset rw,nosuid shared:14 - cgroup cgroup rw,cpuset,clone_children
";
    const HYBRID: &str = "36 30 0:28 / /sys/fs/cgroup/unified rw shared:15 - cgroup2 cgroup2 rw\n";
    const V2: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const ALL: &str = "cpuset cpu io memory hugetlb pids rdma misc\n";

    #[test]
    fn pure_v2_has_every_controller_that_its_root_lists() {
        let layout = Layout::detect(V2, |_| ALL.to_owned()).unwrap();
        assert_eq!(layout.name(), "v2");
        for controller in Controller::ALL {
            assert_eq!(layout.index_of(controller), Some(0), "{controller:?}");
        }
    }

    #[test]
    fn a_controller_that_v2_does_not_list_is_not_there() {
        let layout = Layout::detect(V2, |_| "cpu pids".to_owned()).unwrap();
        assert_eq!(layout.index_of(Controller::Memory), None);
        assert_eq!(layout.index_of(Controller::Cpu), Some(0));
        // The core counts CPU time by itself.
        assert_eq!(layout.index_of(Controller::Cpuacct), Some(0));
    }

    #[test]
    fn a_hybrid_v2_tree_without_controllers_takes_nothing_from_v1() {
        let layout = Layout::detect(&format!("{V1}{HYBRID}"), |_| String::new()).unwrap();
        assert_eq!(layout.name(), "hybrid");
        let of = |controller| layout.hierarchy_of(controller).unwrap();
        assert_eq!(of(Controller::Memory).version, Version::V1);
        assert_eq!(of(Controller::Cpuacct).version, Version::V1);
        assert_eq!(of(Controller::Unified).version, Version::V2);
        assert_eq!(layout.index_of(Controller::Pids), None);
    }

    #[test]
    fn a_hybrid_v2_tree_may_hold_some_controllers() {
        let v1: String = V1.lines().take(2).map(|line| format!("{line}\n")).collect();
        let layout = Layout::detect(&format!("{v1}{HYBRID}"), |_| "memory io".to_owned()).unwrap();
        let of = |controller| layout.hierarchy_of(controller).unwrap();
        assert_eq!(of(Controller::Memory).version, Version::V2);
        assert_eq!(of(Controller::Io).version, Version::V2);
        assert_eq!(layout.index_of(Controller::Cpuset), None);
    }

    #[test]
    fn v1_alone_has_no_unified_tree() {
        let layout = Layout::detect(V1, |_| unreachable!()).unwrap();
        assert_eq!(layout.name(), "v1");
        assert_eq!(layout.v2(), None);
        assert_eq!(
            layout.index_of(Controller::Cpu),
            layout.index_of(Controller::Cpuacct)
        );
    }

    #[test]
    fn a_daemon_in_its_own_cgroup_namespace_is_refused() {
        let text = V2.replace(" / /sys", " /../.. /sys");
        let error = Layout::detect(&text, |_| ALL.to_owned()).unwrap_err();
        assert!(error.to_string().contains("--cgroupns=host"), "{error}");
        assert_eq!(
            Layout::detect("", |_| String::new()),
            Err(LayoutError::NotMounted)
        );
    }

    #[test]
    fn a_reader_in_its_own_namespace_sees_all_of_it_from_the_hosts_tree() {
        let text = V2.replace(" / /sys", " /../.. /sys");
        let layout = Layout::detect_from(Some("/pods/server"), &text, |_| ALL.to_owned()).unwrap();
        let path = |line: &str| layout.paths(line)[0].as_deref().map(str::to_owned);
        assert_eq!(path("0::/"), Some("/pods/server".to_owned()));
        assert_eq!(path("0::/../app/sub"), Some("/pods/app/sub".to_owned()));
        assert_eq!(path("0::/../../init.scope"), Some("/init.scope".to_owned()));
        assert_eq!(path("0::/../.."), Some("/".to_owned()));
        // Its own mounts of a part of the tree are no better than the host's.
        assert!(Layout::detect_from(Some("/pods/server"), V2, |_| ALL.to_owned()).is_err());
    }

    #[test]
    fn a_containers_cgroup_mount_tells_the_root_of_its_namespace() {
        let layout = Layout::detect(V2, |_| ALL.to_owned()).unwrap();
        let own = vec![Some("/pods/app/init.scope".into())];
        let inside = |root: &str| V2.replace(" / /sys", &format!(" {root} /sys"));
        let root = |text: &str| {
            layout
                .mounted_roots(text, &own)
                .and_then(|all| all[0].clone())
        };
        assert_eq!(root(&inside("/pods/app")), Some("/pods/app".into()));
        let deeper = inside("/pods/app") + &inside("/pods/app/init.scope");
        assert_eq!(root(&deeper), Some("/pods/app".into()));
        for tells_nothing in ["/", "/pods/ap", "/other"] {
            assert_eq!(root(&inside(tells_nothing)), None, "{tells_nothing}");
        }
        let from = Layout::detect_from(Some("/pods/s"), &inside("/../.."), |_| ALL.to_owned());
        let roots = from.unwrap().mounted_roots(&inside("/../app"), &own);
        assert_eq!(
            roots.and_then(|all| all[0].clone()),
            Some("/pods/app".into())
        );
    }

    #[test]
    fn every_line_of_proc_cgroup_finds_its_hierarchy() {
        let layout = Layout::detect(&format!("{V1}{HYBRID}"), |_| String::new()).unwrap();
        let paths = layout.paths(
            "12:blkio:/b\n6:cpu,cpuacct:/c:d\n4:memory:/m (deleted)\n1:name=systemd:/s\n9:net_cls:/x\n0::/u\n",
        );
        let path = |at: Option<usize>| paths[at.unwrap()].as_deref();
        assert_eq!(path(layout.index_of(Controller::Io)), Some("/b"));
        assert_eq!(path(layout.index_of(Controller::Cpuacct)), Some("/c:d"));
        assert_eq!(path(layout.index_of(Controller::Memory)), Some("/m"));
        assert_eq!(path(layout.v2()), Some("/u"));
        assert_eq!(path(layout.index_of(Controller::Cpuset)), None);
        assert_eq!(paths[0].as_deref(), Some("/s"));
    }

    #[test]
    fn mount_points_with_spaces_are_unescaped() {
        let text = V2.replace("/sys/fs/cgroup", "/a\\040b\\134c");
        let layout = Layout::detect(&text, |_| ALL.to_owned()).unwrap();
        assert_eq!(layout.hierarchies[0].mount_point, PathBuf::from("/a b\\c"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_layout_or_an_error(text in "(?s).{0,300}", cgroup in "(?s).{0,200}") {
            if let Ok(layout) = Layout::detect(&text, |_| String::new()) {
                let _ = layout.paths(&cgroup);
            }
            let _ = unescape(&text);
        }
    }
}
