//! What the programs cost the verifier, that every one loads, and what they log.

use std::sync::{Arc, Mutex};

use lxcfs_tests::scratch::{Cgroup, Child, Work, state_of};
use lxcfs_user::bpf::{Collector, Feature, Options};

/// The table of what was measured, kernel by kernel.
const RECORD: &str = include_str!("../../../docs/kernel-support.md");

/// One program's row: what was measured on each kernel, and the bound for all others.
struct Row<'a> {
    program: &'a str,
    cells: Vec<&'a str>,
}

/// The rows, headed by the kernels.
fn record() -> Vec<Row<'static>> {
    let table = RECORD
        .lines()
        .skip_while(|line| !line.starts_with("| program | ") || !line.ends_with("| bound |"))
        .take_while(|line| line.starts_with('|'));
    let rows: Vec<_> = table
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let program = cells.next().expect("a first cell").trim_matches('`');
            Row {
                program,
                cells: cells.collect(),
            }
        })
        .collect();
    assert!(rows.len() > 20, "no table in docs/kernel-support.md");
    rows
}

/// The column for this kernel, if it was measured in this shape: two CPUs, and tasks counted
/// on a v1 hierarchy as well or not.
fn column(rows: &[Row<'_>], v1_counted: bool) -> Option<usize> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("osrelease");
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").expect("possible");
    if possible.trim() != "0-1" {
        return None;
    }
    rows[0].cells.iter().position(|title| {
        let (kernel, shape) = title.split_once(' ').unwrap_or((title, ""));
        release.starts_with(&format!("{kernel}.")) && (shape == "(hybrid)") == v1_counted
    })
}

#[test]
fn every_feature_is_on_and_no_program_outgrows_what_the_verifier_took_before() {
    let (collector, states) = Collector::start(&Options::default());
    for feature in Feature::ALL {
        let state = state_of(&states, feature);
        println!("{state}");
        assert!(state.on, "{state}");
    }
    let rows = record();
    let column = column(&rows, collector.v1_controller().is_some());
    let programs = collector.programs();
    assert!(programs.len() >= 10, "{programs:?}");
    let mut grown = Vec::new();
    for program in &programs {
        let row = rows.iter().find(|row| row.program == program.name);
        let row = row.unwrap_or_else(|| panic!("no row for {} in the table", program.name));
        let number = |cell: &str| cell.parse::<u32>().ok();
        let bound = row.cells.last().and_then(|cell| number(cell));
        let bound = bound.unwrap_or_else(|| panic!("no bound for {}", program.name));
        // A tenth more, and for the smallest a few instructions, is another compiler's doing.
        let measured = column.and_then(|column| number(row.cells.get(column)?));
        let most = measured.map_or(bound, |measured| (measured / 10).max(16) + measured);
        // Before 5.16 the kernel does not tell; its own limit is a million.
        let verified = program.verified.unwrap_or(0);
        println!(
            "verified {:<22} {verified:>8}, at most {most}, {:>6} bytes",
            program.name, program.jited
        );
        if verified > most {
            grown.push(format!("{}: {verified}, at most {most}", program.name));
        }
    }
    assert!(
        grown.is_empty(),
        "grown by more than a tenth over docs/kernel-support.md; look why, then record it: {grown:?}"
    );
    for (what, count) in collector.losses() {
        assert_eq!(count, 0, "{what}");
    }
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lines").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_table_is_counted_and_logged_by_the_program_itself() {
    let (collector, _) = Collector::start(&Options {
        task_sets: 1,
        ..Options::default()
    });
    let cgroup = Cgroup::new("full");
    let _child = Child::start(&cgroup, Work::Sleep);
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let forwarded = tracing::subscriber::with_default(subscriber, || {
        let sample = collector.sample_tasks().expect("sample_tasks");
        assert!(sample.lost_tasks > 0);
        collector.forward_log()
    });
    let text = String::from_utf8(lines.0.lock().expect("lines").clone()).expect("text");
    assert!(forwarded > 0, "nothing logged");
    assert!(
        text.contains("WARN") && text.contains("the table of tasks is full: 1 tasks not counted"),
        "{text}"
    );
    // At each doubling only.
    let lost = collector.losses()[0].1;
    assert!(
        forwarded <= u64::from(lost.ilog2()) + 1,
        "{forwarded} for {lost}"
    );
}
