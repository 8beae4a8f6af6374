use super::*;
use crate::policy::{CpuNumbering, CpuPolicy};
use crate::view::testing::{container, cpus, render_with, x86_cpuinfo};

fn shown(snapshot: &Snapshot, policy: &ViewPolicy) -> String {
    render_with(|out| render(snapshot, policy, out))
}

fn with(text: &str, effective: &str, quota: Option<(u64, u64)>) -> Snapshot {
    let mut snapshot = cpus(container(), effective, quota);
    snapshot.host.cpuinfo = Some(text.into());
    snapshot
}

#[test]
fn x86_cpus_are_renumbered_into_one_package_of_n_cores_f15() {
    let snapshot = with(&x86_cpuinfo(8), "5-6", None);
    let block = |number: u32, mhz: u32| {
        format!(
            "processor\t: {number}\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n\
             cpu MHz\t\t: {mhz}.098\nphysical id\t: 0\nsiblings\t: 2\ncore id\t\t: {number}\n\
             cpu cores\t: 2\napicid\t\t: {number}\ninitial apicid\t: {number}\nfpu\t\t: yes\n\
             flags\t\t: fpu vme ht\npower management:\n\n"
        )
    };
    assert_eq!(
        shown(&snapshot, &ViewPolicy::default()),
        block(0, 2605) + &block(1, 2606)
    );
}

#[test]
fn physical_numbering_keeps_the_hosts_topology() {
    let host = x86_cpuinfo(4);
    let policy = ViewPolicy {
        cpus: CpuPolicy::Cpuset,
        cpu_numbering: CpuNumbering::Physical,
        ..ViewPolicy::default()
    };
    let blocks: Vec<_> = host.split_inclusive("\n\n").collect();
    assert_eq!(
        shown(&with(&host, "1,3", None), &policy),
        blocks[1].to_owned() + blocks[3]
    );
}

const ARM64: &str = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n\n\
                     processor\t: 1\nBogoMIPS\t: 51.00\nCPU part\t: 0xd0c\n\n";

#[test]
fn arm64_blocks_are_renumbered() {
    assert_eq!(
        shown(&with(ARM64, "1", None), &ViewPolicy::default()),
        "processor\t: 0\nBogoMIPS\t: 51.00\nCPU part\t: 0xd0c\n\n"
    );
}

#[test]
fn lines_of_the_machine_around_the_blocks_stay() {
    let host = format!("Machine\t: x\n{ARM64}Hardware\t: BCM2835\nRevision\t: a02082\n");
    let text = shown(&with(&host, "0", None), &ViewPolicy::default());
    assert_eq!(
        text,
        "Machine\t: x\nprocessor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n\n\
         Hardware\t: BCM2835\nRevision\t: a02082\n"
    );
}

#[test]
fn the_number_of_blocks_holds_when_a_cpu_has_just_gone_offline() {
    let text = shown(&with(ARM64, "0-3", None), &ViewPolicy::default());
    let numbers: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("processor"))
        .collect();
    assert_eq!(
        numbers,
        [
            "processor\t: 0",
            "processor\t: 1",
            "processor\t: 2",
            "processor\t: 3"
        ]
    );
}

#[test]
fn s390x_is_narrowed_and_never_empty() {
    let host = "vendor_id       : IBM/S390\n# processors    : 2\nbogomips per cpu: 3033.00\n\
                processor 0: version = FF,  identification = 1,  machine = 2964\n\
                processor 1: version = FF,  identification = 2,  machine = 2964\n\n\
                cpu number      : 0\ncpu MHz dynamic : 5000\n\n\
                cpu number      : 1\ncpu MHz dynamic : 5001\n\n";
    assert_eq!(
        shown(&with(host, "1", None), &ViewPolicy::default()),
        "vendor_id       : IBM/S390\n# processors    : 1\nbogomips per cpu: 3033.00\n\
         processor 0: version = FF,  identification = 2,  machine = 2964\n\n\
         cpu number      : 0\ncpu MHz dynamic : 5001\n\n"
    );
}
