use super::*;
use crate::mountinfo;

mod properties;

/// A podman-like container: its own root, procfs and sysfs.
const BASE: &str = "\
10 9 0:63 / / rw - overlay overlay rw
11 10 0:67 / /proc rw,nosuid - proc proc rw
12 10 0:69 / /sys ro,nosuid - sysfs sysfs ro
";
const SERVED: Device = Device {
    major: 0,
    minor: 50,
};
const DEAD: Device = Device {
    major: 0,
    minor: 51,
};

fn facts() -> Facts {
    Facts {
        served: Some(SERVED),
        liveness: [(DEAD, Liveness::Dead)].into(),
        host_peers: [77].into(),
    }
}

fn table(extra: &str) -> MountTable {
    mountinfo::parse(format!("{BASE}{extra}").as_bytes()).unwrap()
}

fn wanted(files: &str) -> Goal {
    Goal::Attach {
        selection: Selection::parse(files).unwrap(),
        takeover: false,
    }
}

fn one(extra: &str, goal: &Goal) -> Action {
    let steps = plan(&table(extra), &facts(), goal);
    assert_eq!(steps.len(), 1, "{steps:?}");
    steps[0].action.clone()
}

fn heal(extra: &str) -> Vec<Step> {
    plan(&table(extra), &facts(), &Goal::Heal)
}

/// A bind of `root` of the file system with minor number `minor` at `at`.
fn bind(id: u32, parent: u32, minor: u32, root: &str, at: &str) -> String {
    format!("{id} {parent} 0:{minor} {root} {at} rw - fuse.lxcfs lxcfs rw\n")
}

#[test]
fn a_bare_container_gets_every_selected_file() {
    let steps = plan(&table(""), &facts(), &wanted("default"));
    assert_eq!(steps.len(), Selection::default().entries().count());
    for step in &steps {
        let base = if step.path.starts_with("/proc") {
            11
        } else {
            12
        };
        assert_eq!(
            step.action,
            Action::Attach {
                source: step.path.clone(),
                base: MountId(base)
            },
            "{}",
            step.path.display()
        );
    }
}

#[test]
fn what_is_attached_and_works_is_left_alone() {
    let ours = bind(20, 11, 50, "/proc/meminfo", "/proc/meminfo");
    assert_eq!(one(&ours, &wanted("meminfo")), Action::Skip(Skip::UpToDate));
    assert_eq!(heal(&ours)[0].action, Action::Skip(Skip::UpToDate));
}

#[test]
fn a_file_inside_an_attached_directory_is_up_to_date() {
    let ours = bind(
        20,
        12,
        50,
        "/sys/devices/system/cpu",
        "/sys/devices/system/cpu",
    );
    let online = wanted("/sys/devices/system/cpu/online");
    for step in plan(&table(&ours), &facts(), &online) {
        assert_eq!(step.action, Action::Skip(Skip::UpToDate));
    }
}

#[test]
fn a_dead_mount_is_replaced_in_its_place() {
    let dead = bind(20, 11, 51, "/proc/meminfo", "/proc/meminfo");
    let expected = Action::Replace {
        source: "/proc/meminfo".into(),
        dead: vec![MountId(20)],
    };
    assert_eq!(one(&dead, &wanted("meminfo")), expected);
    assert_eq!(heal(&dead)[0].action, expected);
    // Asked for another file, the dead one is still repaired.
    let steps = plan(&table(&dead), &facts(), &wanted("stat"));
    let repaired = steps
        .iter()
        .find(|step| step.path == Path::new("/proc/meminfo"));
    assert_eq!(repaired.unwrap().action, expected);
}

#[test]
fn a_dead_mount_whose_directory_entry_is_gone_keeps_its_name() {
    let dead = bind(20, 11, 51, "/proc/meminfo//deleted", "/proc/meminfo");
    assert!(
        matches!(&heal(&dead)[0].action, Action::Replace { source, .. } if source == Path::new("/proc/meminfo"))
    );
}

#[test]
fn healing_adds_nothing() {
    assert!(heal("").is_empty());
}

#[test]
fn dead_mounts_that_scripts_stacked_are_replaced_by_one() {
    let stacked = bind(20, 11, 51, "/proc/stat", "/proc/stat")
        + &bind(21, 20, 51, "/proc/stat", "/proc/stat")
        + &bind(22, 21, 51, "/proc/stat", "/proc/stat");
    let steps = heal(&stacked);
    assert_eq!(steps.len(), 1);
    assert_eq!(
        steps[0].action,
        Action::Replace {
            source: "/proc/stat".into(),
            dead: vec![MountId(22), MountId(21), MountId(20)],
        }
    );
}

#[test]
fn a_live_mount_under_a_dead_one_is_uncovered_not_stacked() {
    let stacked = bind(20, 11, 50, "/proc/stat", "/proc/stat")
        + &bind(21, 20, 51, "/proc/stat", "/proc/stat");
    assert_eq!(
        heal(&stacked)[0].action,
        Action::Detach {
            mounts: vec![MountId(21)]
        }
    );
}

#[test]
fn a_live_mount_over_a_dead_one_is_left_as_it_is() {
    let stacked = bind(20, 11, 51, "/proc/stat", "/proc/stat")
        + &bind(21, 20, 50, "/proc/stat", "/proc/stat");
    assert_eq!(heal(&stacked)[0].action, Action::Skip(Skip::UpToDate));
}

#[test]
fn the_users_own_mount_is_never_touched() {
    let own = "20 11 0:63 /my/stat /proc/stat rw - overlay overlay rw\n";
    assert_eq!(
        one(own, &wanted("stat")),
        Action::Skip(Skip::UserMount {
            found: "overlay".into()
        })
    );
    // Not even when it lies over a dead mount of ours.
    let over = bind(20, 11, 51, "/proc/stat", "/proc/stat")
        + "21 20 0:63 /my/stat /proc/stat rw - overlay overlay rw\n";
    assert!(heal(&over).is_empty());
    assert!(matches!(
        one(&over, &wanted("stat")),
        Action::Skip(Skip::UserMount { .. })
    ));
    let none = plan(&table(&over), &facts(), &Goal::Detach { selection: None });
    assert!(none.is_empty(), "{none:?}");
}

#[test]
fn a_users_mount_inside_a_directory_keeps_the_directory_away() {
    let own = "20 12 0:63 /my/online /sys/devices/system/cpu/online rw - overlay overlay rw\n";
    assert!(matches!(
        one(own, &wanted("cpu")),
        Action::Skip(Skip::UserMount { .. })
    ));
    // What runtimes hide stays hidden under our tree.
    let masked = "20 12 0:70 / /sys/devices/system/cpu/cpu0/thermal_throttle ro - tmpfs tmpfs ro\n";
    assert!(matches!(one(masked, &wanted("cpu")), Action::Attach { .. }));
}

#[test]
fn another_running_lxcfs_is_left_alone_unless_told() {
    let other = bind(20, 11, 60, "/proc/meminfo", "/proc/meminfo");
    let mut facts = facts();
    facts.liveness.insert(
        Device {
            major: 0,
            minor: 60,
        },
        Liveness::Alive,
    );
    let steps = plan(&table(&other), &facts, &wanted("meminfo"));
    assert_eq!(
        steps[0].action,
        Action::Skip(Skip::OtherInstance {
            device: "0:60".into()
        })
    );
    let takeover = Goal::Attach {
        selection: Selection::parse("meminfo").unwrap(),
        takeover: true,
    };
    let steps = plan(&table(&other), &facts, &takeover);
    assert!(matches!(steps[0].action, Action::Replace { .. }));
}

#[test]
fn a_server_that_does_not_answer_is_not_called_dead() {
    let unknown = bind(20, 11, 61, "/proc/meminfo", "/proc/meminfo");
    let expected = Action::Skip(Skip::Unresponsive {
        device: "0:61".into(),
    });
    assert_eq!(heal(&unknown)[0].action, expected);
    assert_eq!(one(&unknown, &wanted("meminfo")), expected);
    let none = plan(
        &table(&unknown),
        &facts(),
        &Goal::Detach { selection: None },
    );
    assert!(none.is_empty());
}

#[test]
fn proc_paths_on_anything_but_that_place_of_a_procfs_are_refused() {
    let cases = [
        // No procfs at all: the image's own directory.
        "10 9 0:63 / / rw - overlay overlay rw\n",
        // A tmpfs the container put over /proc.
        "10 9 0:63 / / rw - overlay overlay rw\n11 10 0:67 / /proc rw - proc proc rw\n30 11 0:80 / /proc rw - tmpfs tmpfs rw\n",
        // Another part of a procfs bound to /proc.
        "10 9 0:63 / / rw - overlay overlay rw\n11 10 0:67 /sys /proc rw - proc proc rw\n",
        // The right type in name only: a FUSE file system of the container.
        "10 9 0:63 / / rw - overlay overlay rw\n11 10 0:67 / /proc rw - fuse.proc proc rw\n",
    ];
    for text in cases {
        let table = mountinfo::parse(text.as_bytes()).unwrap();
        let steps = plan(&table, &facts(), &wanted("meminfo"));
        assert!(
            matches!(steps[0].action, Action::Skip(Skip::NotKernelFs { .. })),
            "{text}: {steps:?}"
        );
    }
}

#[test]
fn a_bound_part_of_proc_counts_as_that_part() {
    let readonly = "20 11 0:67 /pressure /proc/pressure ro - proc proc rw\n";
    assert_eq!(
        one(readonly, &wanted("pressure/cpu")),
        Action::Attach {
            source: "/proc/pressure/cpu".into(),
            base: MountId(20)
        }
    );
}

#[test]
fn a_second_procfs_over_the_first_is_attached_to_again() {
    // The first procfs has our file; an unmasked or nested procfs now hides it.
    let second = bind(20, 11, 50, "/proc/meminfo", "/proc/meminfo")
        + "21 11 0:81 / /proc rw - proc proc rw\n";
    assert_eq!(
        one(&second, &wanted("meminfo")),
        Action::Attach {
            source: "/proc/meminfo".into(),
            base: MountId(21)
        }
    );
}

#[test]
fn a_chrooted_process_is_planned_relative_to_its_root() {
    let text = b"40 27 0:5 / /proc rw - proc proc rw\n41 40 0:51 /proc/stat /proc/stat rw - fuse.lxcfs lxcfs rw\n";
    let table = mountinfo::parse(text).unwrap();
    let steps = plan(&table, &facts(), &wanted("stat,meminfo"));
    assert!(
        matches!(
            &steps[0].action,
            Action::Attach {
                base: MountId(40),
                ..
            }
        ),
        "{steps:?}"
    );
    assert!(matches!(steps[1].action, Action::Replace { .. }));
    // No sysfs below that root.
    let steps = plan(&table, &facts(), &wanted("cpu"));
    let cpu = steps
        .iter()
        .find(|step| step.path.starts_with("/sys"))
        .unwrap();
    assert_eq!(cpu.action, Action::Skip(Skip::OutOfReach));
}

#[test]
fn mounts_that_would_show_up_on_the_host_are_refused() {
    let text = "10 9 0:63 / / rw shared:1 - overlay overlay rw\n11 10 0:67 / /proc rw shared:77 - proc proc rw\n";
    let dead = bind(20, 11, 51, "/proc/stat", "/proc/stat");
    let table = mountinfo::parse(format!("{text}{dead}").as_bytes()).unwrap();
    let shared = Action::Skip(Skip::SharedWithHost { group: 77 });
    for step in plan(&table, &facts(), &wanted("stat,meminfo")) {
        assert_eq!(step.action, shared, "{}", step.path.display());
    }
    for step in plan(&table, &facts(), &Goal::Detach { selection: None }) {
        assert_eq!(step.action, shared);
    }
    // A peer group of its own, or a slave of the host's, is fine.
    let own = BASE.replace("rw,nosuid -", "rw,nosuid shared:5 master:77 -");
    let table = mountinfo::parse(own.as_bytes()).unwrap();
    let steps = plan(&table, &facts(), &wanted("meminfo"));
    assert!(matches!(steps[0].action, Action::Attach { .. }));
}

#[test]
fn the_helper_volume_of_the_peers_is_adopted() {
    // The whole of a dead lxcfs, propagated into the container by the peers' webhooks.
    let whole = bind(20, 10, 51, "/", "/var/lib/lxcfs");
    assert_eq!(
        heal(&whole)[0].action,
        Action::Replace {
            source: "/".into(),
            dead: vec![MountId(20)]
        }
    );
}

#[test]
fn a_dead_directory_is_renewed_once_with_all_that_lies_in_it() {
    let both = bind(
        20,
        12,
        51,
        "/sys/devices/system/cpu",
        "/sys/devices/system/cpu",
    ) + &bind(
        21,
        20,
        51,
        "/sys/devices/system/cpu/online",
        "/sys/devices/system/cpu/online",
    );
    let steps = heal(&both);
    assert_eq!(steps.len(), 1, "{steps:?}");
    assert_eq!(steps[0].path, Path::new("/sys/devices/system/cpu"));
    // The peers bound the one file; the whole directory covers it.
    let file = bind(
        21,
        12,
        51,
        "/sys/devices/system/cpu/online",
        "/sys/devices/system/cpu/online",
    );
    assert!(matches!(one(&file, &wanted("cpu")), Action::Attach { .. }));
}

#[test]
fn a_single_cpu_file_of_the_peers_is_adopted() {
    let online = bind(
        20,
        12,
        51,
        "/sys/devices/system/cpu/online",
        "/sys/devices/system/cpu/online",
    );
    assert!(matches!(heal(&online)[0].action, Action::Replace { .. }));
}

#[test]
fn dead_files_we_do_not_have_are_named_and_left() {
    let cgroup = bind(20, 12, 51, "/cgroup/memory", "/sys/fs/cgroup/memory");
    assert_eq!(
        heal(&cgroup)[0].action,
        Action::Skip(Skip::UnknownFile {
            root: "/cgroup/memory".into()
        })
    );
    let climbing = bind(
        20,
        10,
        51,
        "/sys/devices/system/cpu/../../../../etc",
        "/etc",
    );
    assert!(matches!(
        heal(&climbing)[0].action,
        Action::Skip(Skip::UnknownFile { .. })
    ));
}

#[test]
fn another_file_of_ours_at_a_wrong_place_is_corrected_when_dead() {
    let swapped = bind(20, 11, 51, "/proc/stat", "/proc/meminfo");
    assert!(
        matches!(&heal(&swapped)[0].action, Action::Replace { source, .. } if source == Path::new("/proc/meminfo"))
    );
}

#[test]
fn detach_takes_every_layer_of_ours_and_nothing_else() {
    let mounts = bind(20, 11, 51, "/proc/stat", "/proc/stat")
        + &bind(21, 20, 50, "/proc/stat", "/proc/stat")
        + &bind(
            22,
            12,
            50,
            "/sys/devices/system/cpu/online",
            "/sys/devices/system/cpu/online",
        )
        + &bind(
            23,
            12,
            50,
            "/sys/devices/system/cpu",
            "/sys/devices/system/cpu",
        )
        + &bind(24, 10, 50, "/", "/var/lib/lxcfs")
        + "25 11 0:63 /mine /proc/uptime rw - overlay overlay rw\n";
    let steps = plan(&table(&mounts), &facts(), &Goal::Detach { selection: None });
    let found: Vec<(&str, &Action)> = steps
        .iter()
        .map(|step| (step.path.to_str().unwrap(), &step.action))
        .collect();
    let gone = |ids: &[u32]| Action::Detach {
        mounts: ids.iter().copied().map(MountId).collect(),
    };
    assert_eq!(
        found,
        [
            ("/proc/stat", &gone(&[21, 20])),
            ("/sys/devices/system/cpu", &gone(&[23])),
            ("/sys/devices/system/cpu/online", &gone(&[22])),
        ]
    );
}

#[test]
fn a_bind_of_a_shared_mount_of_the_host_is_detached() {
    // Every mount is shared where systemd is process 1, and a bind joins the peer group.
    let bound = bind(20, 11, 50, "/proc/stat", "/proc/stat");
    let shared = bound.replacen(" - ", " shared:77 - ", 1);
    assert_ne!(shared, bound);
    assert_eq!(
        one(&shared, &Goal::Detach { selection: None }),
        Action::Detach {
            mounts: vec![MountId(20)]
        }
    );
}

#[test]
fn detach_of_one_file_leaves_the_others() {
    let mounts = bind(20, 11, 50, "/proc/stat", "/proc/stat")
        + &bind(21, 11, 50, "/proc/meminfo", "/proc/meminfo");
    let goal = Goal::Detach {
        selection: Some(Selection::parse("stat").unwrap()),
    };
    assert_eq!(
        one(&mounts, &goal),
        Action::Detach {
            mounts: vec![MountId(20)]
        }
    );
}

#[test]
fn without_a_daemon_only_dead_mounts_are_ours() {
    let mounts = bind(20, 11, 51, "/proc/stat", "/proc/stat")
        + &bind(21, 11, 50, "/proc/meminfo", "/proc/meminfo");
    let facts = Facts {
        served: None,
        liveness: [(DEAD, Liveness::Dead), (SERVED, Liveness::Alive)].into(),
        ..Facts::default()
    };
    let steps = plan(&table(&mounts), &facts, &Goal::Detach { selection: None });
    assert_eq!(steps.len(), 1);
    assert_eq!(steps[0].path, Path::new("/proc/stat"));
}

#[test]
fn what_lies_in_a_directory_goes_with_the_dead_one_that_covers_a_live_one() {
    let (cpu, online) = ("/sys/devices/system/cpu", "/sys/devices/system/cpu/online");
    let mounts = bind(20, 12, 50, cpu, cpu)
        + &bind(21, 20, 50, online, online)
        + &bind(22, 20, 51, cpu, cpu)
        + &bind(23, 22, 51, online, online);
    let steps = plan(&table(&mounts), &facts(), &Goal::Heal);
    // `online` of the live directory comes to light by this: there is nothing to put on it.
    assert_eq!(
        steps,
        [Step {
            path: cpu.into(),
            action: Action::Detach {
                mounts: vec![MountId(22)]
            }
        }]
    );
    assert!(uncovers(&steps, &Goal::Heal));
}

#[test]
fn only_visible_devices_are_asked() {
    let mounts = bind(20, 11, 51, "/proc/stat", "/proc/stat")
        + &bind(21, 20, 52, "/proc/stat", "/proc/stat")
        + &bind(22, 11, 50, "/proc/meminfo", "/proc/meminfo");
    let asked = devices_to_probe(&table(&mounts), Some(SERVED));
    assert_eq!(asked.len(), 1);
    assert!(asked.contains_key(&Device {
        major: 0,
        minor: 52
    }));
}
