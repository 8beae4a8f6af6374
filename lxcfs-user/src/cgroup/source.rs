//! Gathers one container's normalised figures from its chains of kept directories: which
//! file of which level is read, for v1 and v2. What the texts mean is in
//! [`v1`] and [`v2`].

use crate::cpuset::CpuSet;
use crate::snapshot::{
    Controller, CpuTime, Cpus, Decided, HugePages, IoDevice, Memory, Origin, Quota, Swap,
};
use crate::units::{Bytes, Limit, Nsec};

use super::ancestors::{Level, tightest, tightest_quota};
use super::layout::Version;
use super::reader::{Chain, Dir, ReadError};
use super::{parse, v1, v2};

/// `Ok(None)`: no level of the chain has it.
type Found<T> = Result<Option<T>, ReadError>;

/// The levels that can have limits: all but the root.
fn below_root(chain: &Chain) -> impl Iterator<Item = (u16, &Dir)> {
    chain
        .iter()
        .enumerate()
        .filter(|(_, dir)| !dir.is_root())
        .map(|(up, dir)| (u16::try_from(up).unwrap_or(u16::MAX), &**dir))
}

/// The nearest level below the root that has `file`, read.
fn nearest<T>(
    chain: &Chain,
    controller: Controller,
    file: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Found<Decided<T>> {
    for (levels_up, dir) in below_root(chain) {
        if let Some(value) = dir.read(file, &parse)?.flatten() {
            return Ok(Some(Decided {
                value,
                origin: Origin::Cgroup {
                    controller,
                    levels_up,
                    file,
                },
            }));
        }
    }
    Ok(None)
}

fn version(chain: &Chain) -> Version {
    chain.first().map_or(Version::V2, |dir| dir.version())
}

/// Whether the levels from `up` on count for the container: with v1's `use_hierarchy` off,
/// a parent limits only its own tasks.
fn is_hierarchical(chain: &Chain, up: u16) -> Result<bool, ReadError> {
    let Some(parent) = chain.get(usize::from(up) + 1) else {
        return Ok(true);
    };
    if parent.is_root() || parent.version() == Version::V2 {
        return Ok(true);
    }
    let flag = parent.read(v1::file::MEMORY_USE_HIERARCHY, parse::number)?;
    // The file is gone since nothing else is possible any more (5.11).
    Ok(flag.flatten().is_none_or(|value| value != 0))
}

/// Memory of a container, and `None` when no cgroup of the chain below the root has the
/// controller. `high` makes `memory.high` count as a limit.
///
/// # Errors
/// When the cgroup is gone or a file cannot be read.
pub fn memory(chain: &Chain, high: bool, page_size: Bytes) -> Found<Memory> {
    let mut levels = Vec::new();
    let (usage_file, stat_file) = match version(chain) {
        Version::V1 => (v1::file::MEMORY_USAGE, v1::file::MEMORY_STAT),
        Version::V2 => (v2::file::MEMORY_CURRENT, v2::file::MEMORY_STAT),
    };
    for (levels_up, dir) in below_root(chain) {
        let found = match dir.version() {
            Version::V1 => dir
                .read(v1::file::MEMORY_LIMIT, |text| {
                    parse::limit_v1(text, page_size)
                })?
                .flatten()
                .map(|limit| (limit, v1::file::MEMORY_LIMIT)),
            Version::V2 => v2_limit(dir, high)?,
        };
        if let Some((limit, file)) = found {
            let usage = match limit {
                Limit::Max => None,
                Limit::Value(_) => dir.read(usage_file, parse::number)?.flatten().map(Bytes),
            };
            levels.push(Level {
                levels_up,
                limit,
                file,
                usage,
            });
        }
        if !is_hierarchical(chain, levels_up)? {
            break;
        }
    }
    let Some(found) = tightest(Controller::Memory, &levels) else {
        return Ok(None);
    };
    let number = |text: &str| parse::number(text).map(Bytes);
    let usage = match levels.first() {
        // The nearest level's has been read already.
        Some(&Level {
            levels_up,
            usage: Some(value),
            ..
        }) => Some(Decided {
            value,
            origin: Origin::Cgroup {
                controller: Controller::Memory,
                levels_up,
                file: usage_file,
            },
        }),
        _ => nearest(chain, Controller::Memory, usage_file, number)?,
    };
    let Some(usage) = usage else {
        return Ok(None);
    };
    let map = match version(chain) {
        Version::V1 => v1::memory_stat,
        Version::V2 => v2::memory_stat,
    };
    let Some(stat) = nearest(chain, Controller::Memory, stat_file, |text| Some(map(text)))? else {
        return Ok(None);
    };
    Ok(Some(Memory {
        limit: found.limit,
        headroom: found.headroom,
        usage,
        stat,
    }))
}

fn v2_limit(dir: &Dir, high: bool) -> Found<(Limit<Bytes>, &'static str)> {
    let Some(max) = dir.read(v2::file::MEMORY_MAX, parse::limit)?.flatten() else {
        return Ok(None);
    };
    if high
        && let Some(Limit::Value(high)) = dir.read(v2::file::MEMORY_HIGH, parse::limit)?.flatten()
        && max.value().is_none_or(|max| high < max)
    {
        return Ok(Some((Limit::Value(high), v2::file::MEMORY_HIGH)));
    }
    Ok(Some((max, v2::file::MEMORY_MAX)))
}

/// Swap of a container; `None` when no level accounts it (swap off at build or boot time).
///
/// # Errors
/// When the cgroup is gone or a file cannot be read.
pub fn swap(chain: &Chain, page_size: Bytes) -> Found<Swap> {
    match version(chain) {
        Version::V1 => swap_v1(chain, page_size),
        Version::V2 => swap_v2(chain),
    }
}

fn swap_v2(chain: &Chain) -> Found<Swap> {
    let mut levels = Vec::new();
    for (levels_up, dir) in below_root(chain) {
        let Some(limit) = dir.read(v2::file::SWAP_MAX, parse::limit)?.flatten() else {
            continue;
        };
        let usage = match limit {
            Limit::Max => None,
            Limit::Value(_) => dir.read(v2::file::SWAP_CURRENT, parse::number)?.flatten(),
        };
        levels.push(Level {
            levels_up,
            limit,
            file: v2::file::SWAP_MAX,
            usage: usage.map(Bytes),
        });
    }
    let number = |text: &str| parse::number(text).map(Bytes);
    let usage = nearest(chain, Controller::Memory, v2::file::SWAP_CURRENT, number)?;
    Ok(tightest(Controller::Memory, &levels)
        .zip(usage)
        .map(|(found, usage)| Swap {
            limit: found.limit,
            headroom: found.headroom,
            usage,
        }))
}

fn swap_v1(chain: &Chain, page_size: Bytes) -> Found<Swap> {
    let mut levels = Vec::new();
    let mut own_usage = None;
    let (mut least_memory, mut least_both) = (Limit::Max, Limit::Max);
    let min = |a: Limit<Bytes>, b: Limit<Bytes>| match (a, b) {
        (Limit::Value(a), b) => Limit::Value(b.cap(a)),
        (Limit::Max, b) => b,
    };
    for (levels_up, dir) in below_root(chain) {
        let limit = |file| dir.read(file, |text| parse::limit_v1(text, page_size));
        let number = |file| dir.read(file, parse::number);
        let Some(both) = limit(v1::file::MEMSW_LIMIT)?.flatten() else {
            continue;
        };
        let memory = limit(v1::file::MEMORY_LIMIT)?
            .flatten()
            .unwrap_or(Limit::Max);
        let both_used = number(v1::file::MEMSW_USAGE)?.flatten().unwrap_or(0);
        let memory_used = number(v1::file::MEMORY_USAGE)?.flatten().unwrap_or(0);
        let (_, usage) = v1::swap(both, memory, Bytes(both_used), Bytes(memory_used));
        if own_usage.is_none() {
            own_usage = Some(Decided {
                value: usage,
                origin: Origin::Cgroup {
                    controller: Controller::Memory,
                    levels_up,
                    file: v1::file::MEMSW_USAGE,
                },
            });
        }
        // Each minimum over the chain so far, then the difference: a parent's memory
        // limit leaves the child's memsw limit more swap, never less.
        (least_memory, least_both) = (min(least_memory, memory), min(least_both, both));
        let (limit, _) = v1::swap(least_both, least_memory, Bytes(0), Bytes(0));
        levels.push(Level {
            levels_up,
            limit,
            file: v1::file::MEMSW_LIMIT,
            usage: Some(usage),
        });
        if !is_hierarchical(chain, levels_up)? {
            break;
        }
    }
    let (Some(mut usage), Some(found)) = (own_usage, tightest(Controller::Memory, &levels)) else {
        return Ok(None);
    };
    // The chain's answer is that of its end, where both minima are complete.
    let (limit, _) = v1::swap(least_both, least_memory, Bytes(0), Bytes(0));
    let total = match limit {
        Limit::Max => Limit::Max,
        // What is swapped out already is there, whatever the limits say now.
        Limit::Value(limit) => Limit::Value(limit.max(usage.value)),
    };
    usage.value = total.cap(usage.value);
    let headroom = limit.value().map(|limit| Decided {
        value: limit.less(usage.value),
        origin: found.limit.origin,
    });
    Ok(Some(Swap {
        limit: Decided {
            value: total,
            origin: found.limit.origin,
        },
        headroom,
        usage,
    }))
}

/// The sizes a huge page can have on any architecture, with the controller's file names.
macro_rules! huge_page_files {
    ($($size:literal, $bytes:expr;)*) => {
        const HUGE_PAGES: &[HugePageFiles] = &[$(HugePageFiles {
            size: Bytes($bytes),
            v1: [concat!("hugetlb.", $size, ".limit_in_bytes"), concat!("hugetlb.", $size, ".usage_in_bytes")],
            v2: [concat!("hugetlb.", $size, ".max"), concat!("hugetlb.", $size, ".current")],
        }),*];
    };
}

struct HugePageFiles {
    size: Bytes,
    v1: [&'static str; 2],
    v2: [&'static str; 2],
}

huge_page_files! {
    "64KB", 64 << 10;
    "1MB", 1 << 20;
    "2MB", 2 << 20;
    "4MB", 4 << 20;
    "8MB", 8 << 20;
    "16MB", 16 << 20;
    "32MB", 32 << 20;
    "256MB", 256 << 20;
    "512MB", 512 << 20;
    "1GB", 1 << 30;
    "2GB", 2 << 30;
    "16GB", 16 << 30;
}

/// Huge pages of the given sizes (those of `/sys/kernel/mm/hugepages`).
///
/// # Errors
/// When the cgroup is gone or a file cannot be read.
pub fn hugetlb(
    chain: &Chain,
    sizes: &[Bytes],
    page_size: Bytes,
) -> Result<Vec<HugePages>, ReadError> {
    let mut found = Vec::new();
    for files in HUGE_PAGES
        .iter()
        .filter(|files| sizes.contains(&files.size))
    {
        let [limit_file, usage_file] = match version(chain) {
            Version::V1 => files.v1,
            Version::V2 => files.v2,
        };
        let mut levels = Vec::new();
        for (levels_up, dir) in below_root(chain) {
            // Rounded to huge pages, v1's "no limit" is below the page-rounded maximum.
            let unit = Bytes(files.size.0.max(page_size.0));
            let limit = dir.read(limit_file, |text| match dir.version() {
                Version::V1 => parse::limit_v1(text, unit),
                Version::V2 => parse::limit(text),
            })?;
            if let Some(limit) = limit.flatten() {
                levels.push(Level {
                    levels_up,
                    limit,
                    file: limit_file,
                    usage: None,
                });
            }
        }
        let number = |text: &str| parse::number(text).map(Bytes);
        let usage = nearest(chain, Controller::Hugetlb, usage_file, number)?;
        if let Some((tightest, usage)) = tightest(Controller::Hugetlb, &levels).zip(usage) {
            found.push(HugePages {
                size: files.size,
                limit: tightest.limit,
                usage,
            });
        }
    }
    Ok(found)
}

/// The effective cpuset of the nearest level that has one; the root has one too.
///
/// # Errors
/// When the cgroup is gone or a file cannot be read.
pub fn cpuset(chain: &Chain) -> Found<Decided<CpuSet>> {
    for (up, dir) in chain.iter().enumerate() {
        let file = match dir.version() {
            Version::V1 => v1::file::CPUSET_EFFECTIVE,
            Version::V2 => v2::file::CPUSET_EFFECTIVE,
        };
        let set = dir.read(file, |text| CpuSet::parse_list(text).ok())?;
        // A v1 child that was never given CPUs has none; its tasks cannot run there.
        if let Some(value) = set.flatten().filter(|set| !set.is_empty()) {
            return Ok(Some(Decided {
                value,
                origin: Origin::Cgroup {
                    controller: Controller::Cpuset,
                    levels_up: u16::try_from(up).unwrap_or(u16::MAX),
                    file,
                },
            }));
        }
    }
    Ok(None)
}

/// The tightest CPU quota of the chain.
///
/// # Errors
/// When the cgroup is gone or a file cannot be read.
pub fn quota(chain: &Chain) -> Found<Decided<Quota>> {
    let mut levels = Vec::new();
    for (levels_up, dir) in below_root(chain) {
        let quota = match dir.version() {
            Version::V2 => dir
                .read(v2::file::CPU_MAX, parse::cpu_max)?
                .flatten()
                .and_then(|(quota, period)| {
                    Some(Quota {
                        quota: quota?,
                        period,
                    })
                }),
            Version::V1 => {
                let number = |file| dir.read(file, str::to_owned);
                match number(v1::file::CPU_QUOTA)? {
                    Some(quota) if !quota.starts_with('-') => {
                        number(v1::file::CPU_PERIOD)?.and_then(|period| v1::quota(&quota, &period))
                    }
                    _ => None,
                }
            }
        };
        levels.extend(quota.map(|quota| (levels_up, quota)));
    }
    let file = match version(chain) {
        Version::V1 => v1::file::CPU_QUOTA,
        Version::V2 => v2::file::CPU_MAX,
    };
    Ok(tightest_quota(file, levels))
}

/// CPUs and quota. `cpuset` may have no hierarchy; then `online` is effective.
///
/// # Errors
/// When the cgroup is gone or a file cannot be read.
pub fn cpus(
    cpuset_chain: Option<&Chain>,
    cpu_chain: Option<&Chain>,
    online: &CpuSet,
) -> Result<Cpus, ReadError> {
    let effective = match cpuset_chain {
        Some(chain) => cpuset(chain)?,
        None => None,
    };
    Ok(Cpus {
        effective: effective.unwrap_or_else(|| Decided {
            value: online.clone(),
            origin: Origin::Host("/sys/devices/system/cpu/online"),
        }),
        quota: match cpu_chain {
            Some(chain) => quota(chain)?,
            None => None,
        },
    })
}

/// CPU time of the container's own cgroup (every cgroup counts it, so nothing is
/// inherited). `None` for the root cgroup, whose figures are the host's.
///
/// # Errors
/// When the cgroup is gone or a file cannot be read.
pub fn cpu_time(chain: &Chain) -> Found<CpuTime> {
    let Some(dir) = chain.first().filter(|dir| !dir.is_root()) else {
        return Ok(None);
    };
    let origin = |file| Origin::Cgroup {
        controller: Controller::Cpuacct,
        levels_up: 0,
        file,
    };
    if dir.version() == Version::V2 {
        let stat = dir.read(v2::file::CPU_STAT, v2::cpu_stat)?.flatten();
        return Ok(stat.map(|(usage, user, system)| CpuTime {
            usage,
            user,
            system,
            per_cpu: None,
            origin: origin(v2::file::CPU_STAT),
        }));
    }
    let usage = dir.read(v1::file::CPUACCT_USAGE, str::to_owned)?;
    let stat = dir.read(v1::file::CPUACCT_STAT, str::to_owned)?;
    let exact = usage.and_then(|usage| v1::usage(&usage, stat.as_deref().unwrap_or("")));
    let per_cpu = dir.read(v1::file::CPUACCT_USAGE_ALL, v1::usage_all)?;
    let per_cpu = per_cpu.filter(|rows| !rows.is_empty());
    let file = match per_cpu {
        Some(_) => v1::file::CPUACCT_USAGE_ALL,
        None => v1::file::CPUACCT_USAGE,
    };
    let summed = || {
        let rows = per_cpu.as_ref()?;
        let user: Nsec = rows.iter().map(|row| row.user).sum();
        let system = rows.iter().map(|row| row.system).sum();
        Some((user.plus(system), user, system))
    };
    // usage_all can miss what runs between ticks: of the recorded containers, those of 5.10
    // and 6.1 have 42 % and 2 % of cpuacct.usage in it, one of 6.18 has all. It tells the CPUs
    // apart, but how much was used only cpuacct.usage knows.
    let times = exact.or_else(summed);
    Ok(times.map(|(usage, user, system)| CpuTime {
        usage,
        user,
        system,
        per_cpu,
        origin: origin(file),
    }))
}

/// Block devices the container has touched. On v2 the nearest level with the controller
/// answers; v1 counts per subtree in the `_recursive` files.
///
/// # Errors
/// When the cgroup is gone or a file cannot be read.
pub fn io(chain: &Chain) -> Found<Decided<Vec<IoDevice>>> {
    if version(chain) == Version::V2 {
        return nearest(chain, Controller::Io, v2::file::IO_STAT, |text| {
            Some(v2::io_stat(text))
        });
    }
    for (levels_up, dir) in below_root(chain) {
        let mut first = None;
        for (bytes_file, count_file) in [
            (v1::file::IO_BYTES_RECURSIVE, v1::file::IO_COUNT_RECURSIVE),
            // Later kernels count in `blk-throttle.c` only where a limit is set (seen on 6.1
            // and 6.18); the scheduler BFQ counts by itself.
            (v1::file::BFQ_BYTES, v1::file::BFQ_COUNT),
            (v1::file::IO_BYTES, v1::file::IO_COUNT),
        ] {
            let Some(bytes) = dir.read(bytes_file, str::to_owned)? else {
                continue;
            };
            let counts = dir.read(count_file, str::to_owned)?.unwrap_or_default();
            let found = Decided {
                value: v1::io(&bytes, &counts),
                origin: Origin::Cgroup {
                    controller: Controller::Io,
                    levels_up,
                    file: bytes_file,
                },
            };
            if !found.value.is_empty() {
                return Ok(Some(found));
            }
            first.get_or_insert(found);
        }
        if first.is_some() {
            return Ok(first);
        }
    }
    Ok(None)
}

/// The cgroup's own PSI text; `kind` is the discriminant of a
/// [`PressureKind`](crate::snapshot::PressureKind). `None` without PSI, or for the root.
///
/// # Errors
/// When the cgroup is gone or a file cannot be read.
pub fn pressure(chain: &Chain, kind: usize) -> Found<String> {
    let (Some(dir), Some(file)) = (
        chain
            .first()
            .filter(|dir| !dir.is_root() && dir.version() == Version::V2),
        v2::file::PRESSURE.get(kind),
    ) else {
        return Ok(None);
    };
    dir.read(file, str::to_owned)
}

#[cfg(test)]
mod tests;
