//! `/proc/diskstats`: the devices the container has touched and what it did to them.

use super::format::{leading_u64, put_column, put_width};
use crate::snapshot::{Inputs, IoDevice, Origin, Snapshot};
use crate::units::{Bytes, Nsec};

/// What [`render`] needs; of the host's file only names and order are taken.
pub const INPUTS: Inputs = Inputs::HOST_DISKSTATS.and(Inputs::IO);

const SECTOR: u64 = 512;

/// Appends one line per device with any activity of the container, in the host's order.
/// Where nothing counts I/O the file is empty: never the host's counters (F3).
pub fn render(snapshot: &Snapshot, out: &mut Vec<u8>) {
    let devices = snapshot.io.as_ref().map_or(&[][..], |io| &io.value);
    let host = snapshot.host.diskstats.as_deref().unwrap_or("");
    for (major, minor, name) in host.lines().filter_map(device) {
        let number = (u64::from(major), u64::from(minor));
        let found = devices
            .iter()
            .find(|device| (u64::from(device.major), u64::from(device.minor)) == number);
        if let Some(device) = found.filter(|device| touched(device)) {
            put_device(out, device, name);
        }
    }
}

/// Number and name of one line of the host's file.
fn device(line: &str) -> Option<(u32, u32, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let mut number = || u32::try_from(leading_u64(fields.next()?)?).ok();
    let (major, minor) = (number()?, number()?);
    Some((major, minor, fields.next()?))
}

fn touched(device: &IoDevice) -> bool {
    let in_flight = device.times.map_or(0, |times| times.in_flight);
    [device.reads, device.writes, device.discards, in_flight]
        .iter()
        .any(|count| *count > 0)
}

/// `diskstats_show`: "%4d %7d %s" and seventeen counters; milliseconds are 32 bits there and
/// wrap, and readers expect that.
fn put_device(out: &mut Vec<u8>, device: &IoDevice, name: &str) {
    let times = device.times.unwrap_or_default();
    let sectors = |bytes: Bytes| bytes.0 / SECTOR;
    let msec = |time: Nsec| u64::from((time.0 / 1_000_000) as u32);
    let queued = times
        .read_time
        .plus(times.write_time)
        .plus(times.discard_time);
    put_width(out, u64::from(device.major), 4);
    out.push(b' ');
    put_width(out, u64::from(device.minor), 7);
    out.push(b' ');
    out.extend_from_slice(name.as_bytes());
    for column in [
        device.reads,
        times.reads_merged,
        sectors(device.read_bytes),
        msec(times.read_time),
        device.writes,
        times.writes_merged,
        sectors(device.written_bytes),
        msec(times.write_time),
        times.in_flight,
        msec(times.io_time),
        msec(queued),
        device.discards,
        times.discards_merged,
        sectors(device.discarded_bytes),
        msec(times.discard_time),
        // Flushes are not told per cgroup.
        0,
        0,
    ] {
        put_column(out, column);
    }
    out.push(b'\n');
}

/// Where the lines come from.
pub(super) fn why(snapshot: &Snapshot) -> (Origin, &'static str) {
    (
        snapshot
            .io
            .as_ref()
            .map_or(Origin::Unavailable("no io controller"), |io| io.origin),
        "counts and sectors from the cgroup; merges and times where eBPF counts them, else 0",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Decided, IoTimes};
    use crate::view::testing::{MIB, container};

    const HOST: &str = "   7       0 loop0 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n \
                        254       0 vda 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n \
                        254       1 vda1 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n";

    fn shown(devices: Vec<IoDevice>) -> String {
        let mut snapshot = container();
        snapshot.host.diskstats = Some(HOST.into());
        snapshot.io = Some(Decided {
            value: devices,
            origin: Origin::Derived("test"),
        });
        let mut out = Vec::new();
        render(&snapshot, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn vda() -> IoDevice {
        IoDevice {
            major: 254,
            reads: 10,
            read_bytes: Bytes(MIB),
            writes: 3,
            written_bytes: Bytes(12_288),
            discards: 1,
            discarded_bytes: Bytes(4096),
            ..IoDevice::default()
        }
    }

    #[test]
    fn a_line_has_the_twenty_fields_of_present_kernels_f33() {
        let line = shown(vec![vda()]);
        assert_eq!(
            line,
            " 254       0 vda 10 0 2048 0 3 0 24 0 0 0 0 1 0 8 0 0 0\n"
        );
        assert_eq!(line.split_whitespace().count(), 20);
    }

    #[test]
    fn merges_and_times_show_where_they_are_counted() {
        let mut device = vda();
        device.times = Some(IoTimes {
            reads_merged: 1,
            read_time: Nsec(2_000_000),
            writes_merged: 3,
            write_time: Nsec(4_999_999),
            discards_merged: 5,
            discard_time: Nsec(6_000_000),
            in_flight: 7,
            io_time: Nsec(8_000_000),
        });
        assert_eq!(
            shown(vec![device]),
            " 254       0 vda 10 1 2048 2 3 3 24 4 7 8 12 1 5 8 6 0 0\n"
        );
    }

    #[test]
    fn only_touched_devices_with_a_name_show_and_never_the_hosts_counters_f3() {
        let unknown = IoDevice { major: 8, ..vda() };
        let idle = IoDevice {
            major: 7,
            ..IoDevice::default()
        };
        assert_eq!(shown(vec![unknown, idle]), "");
        let mut snapshot = container();
        snapshot.host.diskstats = Some(HOST.into());
        snapshot.io = None;
        let mut out = Vec::new();
        render(&snapshot, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn devices_come_in_the_hosts_order() {
        let loop0 = IoDevice {
            major: 7,
            reads: 1,
            ..IoDevice::default()
        };
        let text = shown(vec![vda(), loop0]);
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(2))
            .collect();
        assert_eq!(names, ["loop0", "vda"]);
    }
}
