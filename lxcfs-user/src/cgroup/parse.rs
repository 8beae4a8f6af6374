//! The formats of cgroup files (`Documentation/admin-guide/cgroup-v2.rst`, "Format").
//! Pure, without allocation; anything that does not follow the format is skipped or
//! answered with `None`, because a newer kernel may add what this one does not know.

use crate::units::{Bytes, Limit, Usec};

/// A file that holds one number.
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A v2 limit: a number of bytes or `max`.
#[must_use]
pub fn limit(text: &str) -> Option<Limit<Bytes>> {
    match text.trim() {
        "max" => Some(Limit::Max),
        digits => digits.parse().ok().map(|n| Limit::Value(Bytes(n))),
    }
}

/// A v1 limit: "no limit" is `LONG_MAX` rounded down to a page (`PAGE_COUNTER_MAX`), or
/// `LONG_MAX` itself; `-1` is what one writes, and never read, but is taken as well.
#[must_use]
pub fn limit_v1(text: &str, page_size: Bytes) -> Option<Limit<Bytes>> {
    let text = text.trim();
    if text == "-1" {
        return Some(Limit::Max);
    }
    let value: u64 = text.parse().ok()?;
    let page = page_size.0.max(1);
    let unlimited = i64::MAX as u64 / page * page;
    Some(if value >= unlimited {
        Limit::Max
    } else {
        Limit::Value(Bytes(value))
    })
}

/// `cpu.max`: quota (`None` for `max`) and period, in microseconds. A period of zero is
/// malformed.
#[must_use]
pub fn cpu_max(text: &str) -> Option<(Option<Usec>, Usec)> {
    let mut fields = text.split_ascii_whitespace();
    let quota = match fields.next()? {
        "max" => None,
        digits => Some(Usec(digits.parse().ok()?)),
    };
    // The period may be left out in what one writes; the kernel always prints it.
    let period = fields.next().map_or(Some(100_000), |p| p.parse().ok())?;
    (period > 0).then_some((quota, Usec(period)))
}

/// Lines of `KEY VALUE`, as in `memory.stat`; lines of any other form are skipped.
pub fn flat_keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// The value of `key` in a flat-keyed file.
#[must_use]
pub fn flat_value(text: &str, key: &str) -> Option<u64> {
    flat_keyed(text).find_map(|(found, value)| (found == key).then_some(value))
}

/// Lines of `KEY SUB=VALUE SUB=VALUE …`, as in `io.stat`: the key and its pairs. Pairs of
/// any other form are skipped.
pub fn nested_keyed(text: &str) -> impl Iterator<Item = (&str, impl Iterator<Item = (&str, u64)>)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let key = fields.next()?;
        Some((
            key,
            fields.filter_map(|field| {
                let (sub, value) = field.split_once('=')?;
                Some((sub, value.parse().ok()?))
            }),
        ))
    })
}

/// A device as cgroup files write it: `MAJOR:MINOR`.
#[must_use]
pub fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Lines of `MAJOR:MINOR OPERATION VALUE`, as in `blkio.throttle.io_serviced`; the final
/// `Total N` line is skipped.
pub fn device_operations(text: &str) -> impl Iterator<Item = ((u32, u32), &str, u64)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let device = device(fields.next()?)?;
        let operation = fields.next()?;
        Some((device, operation, fields.next()?.parse().ok()?))
    })
}

/// The rows of `cpuacct.usage_all`: CPU, user and system nanoseconds.
pub fn usage_all(text: &str) -> impl Iterator<Item = (u32, u64, u64)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let cpu = fields.next()?.parse().ok()?;
        let user = fields.next()?.parse().ok()?;
        Some((cpu, user, fields.next()?.parse().ok()?))
    })
}

/// One number per line, as in `cgroup.procs`. Zero, which the kernel prints for a task
/// that the reader's PID namespace does not have, is left out.
pub fn pids(text: &str) -> impl Iterator<Item = u32> {
    text.lines()
        .filter_map(|line| line.trim().parse().ok())
        .filter(|pid| *pid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: Bytes = Bytes(4096);

    #[test]
    fn a_limit_of_zero_is_not_unlimited() {
        assert_eq!(limit("0\n"), Some(Limit::Value(Bytes(0))));
        assert_eq!(limit("max\n"), Some(Limit::Max));
        assert_eq!(limit(""), None);
        assert_eq!(limit("-1"), None);
    }

    #[test]
    fn v1_knows_three_spellings_of_no_limit() {
        for text in ["9223372036854771712\n", "9223372036854775807\n", "-1\n"] {
            assert_eq!(limit_v1(text, PAGE), Some(Limit::Max), "{text}");
        }
        let below = 9_223_372_036_854_767_616;
        assert_eq!(
            limit_v1(&below.to_string(), PAGE),
            Some(Limit::Value(Bytes(below)))
        );
        // arm64 with 64 KiB pages.
        assert_eq!(
            limit_v1("9223372036854710272", Bytes(65536)),
            Some(Limit::Max)
        );
        assert_eq!(limit_v1("0", PAGE), Some(Limit::Value(Bytes(0))));
    }

    #[test]
    fn quotas_have_a_period_that_is_never_zero() {
        assert_eq!(cpu_max("max 100000\n"), Some((None, Usec(100_000))));
        assert_eq!(
            cpu_max("150000 100000\n"),
            Some((Some(Usec(150_000)), Usec(100_000)))
        );
        assert_eq!(cpu_max("5000"), Some((Some(Usec(5000)), Usec(100_000))));
        assert_eq!(cpu_max("5000 0"), None);
        assert_eq!(cpu_max(""), None);
    }

    #[test]
    fn a_device_without_figures_has_no_pairs() {
        let text = "7:0\n8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=x\n";
        let rows: Vec<_> = nested_keyed(text)
            .map(|(key, pairs)| (key, pairs.collect::<Vec<_>>()))
            .collect();
        assert_eq!(rows[0], ("7:0", vec![]));
        assert_eq!(rows[1].1.len(), 6);
        assert_eq!(rows[1].1[5], ("dios", 6));
    }

    #[test]
    fn the_total_line_of_blkio_is_no_device() {
        let text = "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n";
        let rows: Vec<_> = device_operations(text).collect();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[1], ((8, 0), "Write", 20));
    }

    #[test]
    fn the_heading_of_usage_all_is_no_cpu() {
        let rows: Vec<_> = usage_all("cpu user system\n0 11 22\n3 33 44\n").collect();
        assert_eq!(rows, [(0, 11, 22), (3, 33, 44)]);
    }

    #[test]
    fn tasks_of_a_foreign_pid_namespace_are_left_out() {
        assert_eq!(
            pids("0\n17\n\n4194304\n").collect::<Vec<_>>(),
            [17, 4_194_304]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_skipped(text in "(?s).{0,200}") {
            let _ = number(&text);
            let _ = limit(&text);
            let _ = limit_v1(&text, PAGE);
            let _ = cpu_max(&text);
            let _ = device(&text);
            flat_keyed(&text).for_each(drop);
            nested_keyed(&text).for_each(|(_, pairs)| pairs.for_each(drop));
            device_operations(&text).for_each(drop);
            usage_all(&text).for_each(drop);
            pids(&text).for_each(drop);
        }

        #[test]
        fn what_the_kernel_prints_is_read_back(
            rows in prop::collection::btree_map("[a-z_]{1,12}", any::<u64>(), 0..20)
        ) {
            let text: String = rows.iter().map(|(k, v)| format!("{k} {v}\n")).collect();
            let read: std::collections::BTreeMap<String, u64> =
                flat_keyed(&text).map(|(k, v)| (k.to_owned(), v)).collect();
            prop_assert_eq!(&read, &rows);
            for (key, value) in &rows {
                prop_assert_eq!(flat_value(&text, key), Some(*value));
            }
        }

        #[test]
        fn nested_rows_are_read_back(
            rows in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>()), 0..10)
        ) {
            let text: String = rows
                .iter()
                .map(|(major, minor, r, w)| format!("{major}:{minor} rbytes={r} wbytes={w}\n"))
                .collect();
            let read: Vec<_> = nested_keyed(&text)
                .map(|(key, mut pairs)| {
                    let (major, minor) = device(key).unwrap();
                    (major, minor, pairs.next().unwrap().1, pairs.next().unwrap().1)
                })
                .collect();
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn every_v1_limit_below_the_maximum_is_kept(value in 0u64..=0x7FFF_FFFF_FFFF_E000) {
            prop_assert_eq!(limit_v1(&value.to_string(), PAGE), Some(Limit::Value(Bytes(value))));
        }
    }
}
