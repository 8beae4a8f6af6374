//! What `/proc/PID/…` says of one task: `stat`, `status`, `timens_offsets` and the names
//! of namespace links. Pure.
//!
//! A task chooses its own name, and the name stands in `stat` and `status`: nothing here
//! may be fooled by a `)` or a newline in it.

use crate::units::{Nsec, Ticks};

/// The fields of `/proc/PID/stat` that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskStat {
    /// Thread or process id, in the PID namespace of the procfs.
    pub pid: u32,
    /// State letter: `R`, `S`, `D`, `Z`, `T`, `t`, `X`, `I`, `P` …
    pub state: u8,
    /// Parent.
    pub ppid: u32,
    /// Kernel `task_struct.flags`.
    pub flags: u32,
    /// Threads of the process.
    pub num_threads: u32,
    /// Ticks after boot (`CLOCK_BOOTTIME`, in the reader's time namespace) at which the
    /// task started.
    pub start: Ticks,
}

/// `PF_FROZEN` of kernels below 6.1; the bit means something else afterwards.
const PF_FROZEN: u32 = 0x0001_0000;

impl TaskStat {
    /// Parses the one line. The name is everything between the first `(` and the last `)`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, rest) = text.split_once('(')?;
        let (_name, rest) = rest.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        // Field numbers as in proc(5): the state is number 3.
        let state = *fields.next()?.as_bytes().first()?;
        let ppid = fields.next()?.parse().ok()?;
        let flags = fields.nth(4)?.parse().ok()?;
        let num_threads = fields.nth(10)?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        Some(Self {
            pid: pid.trim().parse().ok()?,
            state,
            ppid,
            flags,
            num_threads,
            start: Ticks(start),
        })
    }

    /// Counted as running by the kernel's load average.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.state == b'R'
    }

    /// Counted as uninterruptible: `D`. Idle kernel threads (`TASK_NOLOAD`) print `I`, and
    /// frozen tasks print `D` only below 6.1, where the flag tells them apart.
    #[must_use]
    pub const fn is_uninterruptible(&self, pf_frozen_known: bool) -> bool {
        self.state == b'D' && !(pf_frozen_known && self.flags & PF_FROZEN != 0)
    }

    /// When it started, as nanoseconds of `CLOCK_BOOTTIME`.
    #[must_use]
    pub fn start(&self, user_hz: u64) -> Nsec {
        let nsec = u128::from(self.start.0) * 1_000_000_000 / u128::from(user_hz.max(1));
        Nsec(u64::try_from(nsec).unwrap_or(u64::MAX))
    }
}

/// `NSpid:` of `/proc/PID/status`: the process id in every PID namespace from the
/// reader's down to its own, which comes last.
#[must_use]
pub fn ns_pids(status: &str) -> Option<Vec<u32>> {
    let line = line_of(status, "NSpid:")?;
    line.split_ascii_whitespace()
        .map(|pid| pid.parse().ok())
        .collect::<Option<Vec<_>>>()
        .filter(|pids| !pids.is_empty())
}

/// `Tgid:` of `/proc/PID/status`: the process that a thread belongs to.
#[must_use]
pub fn tgid(status: &str) -> Option<u32> {
    line_of(status, "Tgid:")?.trim().parse().ok()
}

fn line_of<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    // The name is the first line, and the kernel escapes a newline in it.
    status.lines().find_map(|line| line.strip_prefix(key))
}

/// The inode number in the target of a namespace link: `pid:[4026531836]`.
#[must_use]
pub fn namespace_inode(target: &str) -> Option<u64> {
    let (_, number) = target.split_once(":[")?;
    number.strip_suffix(']')?.parse().ok()
}

/// The boottime line of `/proc/PID/timens_offsets`, in nanoseconds.
#[must_use]
pub fn boottime_offset(text: &str) -> Option<i64> {
    text.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        // The clock was printed as its number before 5.11.
        if !matches!(fields.next()?, "boottime" | "7") {
            return None;
        }
        let seconds: i64 = fields.next()?.parse().ok()?;
        let nanoseconds: i64 = fields.next()?.parse().ok()?;
        Some(
            seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(nanoseconds),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REST: &str =
        "S 1 1 1 0 -1 4194560 10 0 0 0 5 6 0 0 20 0 3 0 12345 1000 2 18446744073709551615";

    #[test]
    fn a_name_with_spaces_and_parentheses_is_only_a_name() {
        for name in ["init", "a b", "x) R 1 (y", ")))", "", "(", "1 (2) S 3"] {
            let stat = TaskStat::parse(&format!("4242 ({name}) {REST}\n")).unwrap();
            assert_eq!(
                stat,
                TaskStat {
                    pid: 4242,
                    state: b'S',
                    ppid: 1,
                    flags: 4_194_560,
                    num_threads: 3,
                    start: Ticks(12345),
                },
                "{name}"
            );
            assert_eq!(stat.start(100), Nsec(123_450_000_000));
        }
    }

    #[test]
    fn frozen_tasks_of_old_kernels_are_no_load() {
        let frozen = TaskStat {
            pid: 1,
            state: b'D',
            ppid: 0,
            flags: PF_FROZEN,
            num_threads: 1,
            start: Ticks(0),
        };
        assert!(!frozen.is_uninterruptible(true));
        assert!(frozen.is_uninterruptible(false));
    }

    #[test]
    fn the_innermost_pid_comes_last() {
        let status = "Name:\tNSpid:\t9\\nx\nTgid:\t77\nPid:\t78\nNSpid:\t78\t12\t1\n";
        assert_eq!(ns_pids(status), Some(vec![78, 12, 1]));
        assert_eq!(tgid(status), Some(77));
        assert_eq!(ns_pids("Name:\tx\n"), None);
    }

    #[test]
    fn time_namespace_offsets_in_both_spellings() {
        let new = "monotonic           0         0\nboottime         1000  500\n";
        assert_eq!(boottime_offset(new), Some(1_000_000_000_500));
        assert_eq!(boottime_offset("1 0 0\n7 -5 0\n"), Some(-5_000_000_000));
        assert_eq!(boottime_offset(""), None);
    }

    #[test]
    fn namespace_links_have_an_inode() {
        assert_eq!(namespace_inode("cgroup:[4026531835]"), Some(4_026_531_835));
        assert_eq!(namespace_inode("cgroup:4026531835"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(?s).{0,200}") {
            let _ = TaskStat::parse(&text);
            let _ = ns_pids(&text);
            let _ = tgid(&text);
            let _ = namespace_inode(&text);
            let _ = boottime_offset(&text);
        }

        #[test]
        fn no_name_changes_the_fields(name in "(?s).{0,15}") {
            let stat = TaskStat::parse(&format!("7 ({name}) {REST}\n")).unwrap();
            prop_assert_eq!((stat.pid, stat.start), (7, Ticks(12345)));
        }
    }
}
