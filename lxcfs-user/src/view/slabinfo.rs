//! `/proc/slabinfo`: the header alone. Kernels since 5.9 have no slab list per cgroup, and
//! the host's list is nobody's business in a container (F5).

use crate::snapshot::{Inputs, Origin, Snapshot};

/// What [`render`] needs.
pub const INPUTS: Inputs = Inputs::HOST_SLABINFO;

/// The kernel's `print_slabinfo_header` without slab debugging.
const HEADER: &str = "slabinfo - version: 2.1\n\
    # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> \
    : tunables <limit> <batchcount> <sharedfactor> \
    : slabdata <active_slabs> <num_slabs> <sharedavail>\n";

/// Appends the two header lines, the host's where they look like a header.
pub fn render(snapshot: &Snapshot, out: &mut Vec<u8>) {
    let host = snapshot.host.slabinfo.as_deref().unwrap_or("");
    let mut lines = host.lines();
    match (lines.next(), lines.next()) {
        (Some(version), Some(columns))
            if version.starts_with("slabinfo - version:") && columns.starts_with("# name") =>
        {
            for line in [version, columns] {
                out.extend_from_slice(line.as_bytes());
                out.push(b'\n');
            }
        }
        _ => out.extend_from_slice(HEADER.as_bytes()),
    }
}

/// Where the lines come from.
pub(super) fn why() -> (Origin, &'static str) {
    (
        Origin::Host("/proc/slabinfo"),
        "header only: the kernel has no slab list per cgroup",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::container;

    fn shown(host: Option<&str>) -> String {
        let mut snapshot = container();
        snapshot.host.slabinfo = host.map(Into::into);
        let mut out = Vec::new();
        render(&snapshot, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn no_slab_of_the_host_is_ever_shown_f5() {
        let host = format!("{HEADER}kmalloc-8 9 9 9 9 9 : tunables 0 0 0 : slabdata 1 1 0\n");
        assert_eq!(shown(Some(&host)), HEADER);
        // A host text that is not a header must not get through either.
        assert_eq!(shown(Some("kmalloc-8 9\nkmalloc-16 9\n")), HEADER);
        assert_eq!(shown(None), HEADER);
    }

    #[test]
    fn the_header_is_the_one_of_the_running_kernel() {
        let other = "slabinfo - version: 2.1 (statistics)\n# name <x>\n";
        assert_eq!(shown(Some(other)), other);
    }
}
