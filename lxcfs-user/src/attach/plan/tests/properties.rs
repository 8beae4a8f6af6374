//! Plans for any table of mounts, carried out on the table.

use super::*;
use proptest::prelude::*;

use crate::attach::plan::detach::without;

/// Carries a plan out on the table, as the kernel would.
fn carry_out(table: &MountTable, steps: &[Step]) -> MountTable {
    let mut mounts: Vec<Mount> = table.mounts().to_vec();
    let mut next = mounts.iter().map(|mount| mount.id.0).max().unwrap_or(0);
    for step in steps {
        let (source, remove) = match &step.action {
            Action::Attach { source, .. } => (Some(source), &[][..]),
            Action::Replace { source, dead } => (Some(source), dead.as_slice()),
            Action::Detach { mounts } => (None, mounts.as_slice()),
            Action::Skip(_) => continue,
        };
        let now = MountTable::new(mounts.clone());
        let now = without(&now, remove.iter().copied().collect());
        mounts = now.mounts().to_vec();
        if let Some(source) = source {
            next += 1;
            let parent = now.stack(&step.path).top().unwrap().id;
            mounts.push(Mount {
                id: MountId(next),
                parent,
                device: SERVED,
                root: source.clone(),
                mount_point: step.path.clone(),
                shared: None,
                master: None,
                fs_type: FS_TYPE.to_owned(),
                source: "lxcfs".into(),
            });
        }
    }
    MountTable::new(mounts)
}

const PATHS: [&str; 5] = [
    "/proc/meminfo",
    "/proc/stat",
    "/sys/devices/system/cpu",
    "/sys/devices/system/cpu/online",
    "/etc/hosts",
];

prop_compose! {
    fn any_table()(layers in proptest::collection::vec((0usize..5, 0u32..4, 0u32..3), 0..10)) -> MountTable {
        let mut mounts = table("").mounts().to_vec();
        for (at, (path, kind, shared)) in layers.into_iter().enumerate() {
            let now = MountTable::new(mounts.clone());
            let parent = now.stack(Path::new(PATHS[path])).top().unwrap().id;
            let minor = [50, 51, 60, 63][kind as usize];
            mounts.push(Mount {
                id: MountId(100 + at as u32),
                parent,
                device: Device { major: 0, minor },
                root: PATHS[path].into(),
                mount_point: PATHS[path].into(),
                shared: (shared == 1).then_some(77),
                master: None,
                fs_type: if kind == 3 { "overlay" } else { FS_TYPE }.to_owned(),
                source: "x".into(),
            });
        }
        MountTable::new(mounts)
    }
}

fn all_facts() -> Facts {
    let mut facts = facts();
    facts.liveness.insert(
        Device {
            major: 0,
            minor: 60,
        },
        Liveness::Alive,
    );
    facts
}

proptest! {
    #[test]
    fn a_second_run_has_nothing_left_to_do(before in any_table(), heal in any::<bool>()) {
        let goal = if heal { Goal::Heal } else { wanted("default") };
        let first = plan(&before, &all_facts(), &goal);
        let mut after = carry_out(&before, &first);
        if uncovers(&first, &goal) {
            after = carry_out(&after, &plan(&after, &all_facts(), &goal));
        }
        for step in plan(&after, &all_facts(), &goal) {
            prop_assert!(matches!(step.action, Action::Skip(_)), "{step:?}");
        }
    }

    #[test]
    fn foreign_mounts_survive_every_goal(before in any_table(), which in 0..3) {
        let goal = match which {
            0 => Goal::Heal,
            1 => wanted("default"),
            _ => Goal::Detach { selection: None },
        };
        let steps = plan(&before, &all_facts(), &goal);
        for step in &steps {
            let removed = match &step.action {
                Action::Replace { dead, .. } => dead.clone(),
                Action::Detach { mounts } => mounts.clone(),
                Action::Attach { .. } | Action::Skip(_) => Vec::new(),
            };
            for id in removed {
                let mount = before.by_id(id).unwrap();
                prop_assert_eq!(&mount.fs_type, FS_TYPE);
                prop_assert!([50, 51].contains(&mount.device.minor));
            }
        }
    }

    #[test]
    fn ours_is_never_put_directly_on_a_live_one(before in any_table()) {
        let after = carry_out(&before, &plan(&before, &all_facts(), &wanted("default")));
        // Hidden ones too: what is uncovered was there before.
        let doubled = |table: &MountTable| {
            let on_a_live_one = |mount: &&Mount| {
                table.by_id(mount.parent).is_some_and(|below| {
                    below.mount_point == mount.mount_point
                        && [below, mount].iter().all(|one| one.device == SERVED)
                })
            };
            table.mounts().iter().filter(on_a_live_one).count()
        };
        prop_assert!(doubled(&after) <= doubled(&before));
    }
}
