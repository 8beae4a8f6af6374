//! `/proc/swaps`, and the two swap lines of `/proc/meminfo`: one figure for both.

use super::format::put_u64;
use super::meminfo::HostMeminfo;
use crate::engine::AnswerError;
use crate::policy::ViewPolicy;
use crate::snapshot::{Inputs, Origin, Snapshot};
use crate::units::{Kib, Limit};

/// What [`render`] needs; the host's totals come from its meminfo. Where swap is not counted,
/// [`Inputs::SWAP`] brings the memory too, which tells why.
pub const INPUTS: Inputs = Inputs::HOST_MEMINFO.and(Inputs::SWAP);

const HOST: Origin = Origin::Host("/proc/meminfo");

/// Swap as the container sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SwapView {
    pub(crate) total: Kib,
    pub(crate) free: Kib,
    pub(crate) total_origin: Origin,
    pub(crate) free_origin: Origin,
}

impl SwapView {
    pub(crate) fn derive(snapshot: &Snapshot, host: &HostMeminfo, policy: &ViewPolicy) -> Self {
        let none = |origin| Self {
            total: Kib::ZERO,
            free: Kib::ZERO,
            total_origin: origin,
            free_origin: origin,
        };
        if !policy.swap {
            return none(Origin::Derived("swap is turned off"));
        }
        let Some(swap) = &snapshot.swap else {
            if snapshot.memory.is_some() {
                return none(Origin::Unavailable(
                    "swap is not counted per cgroup; 0 is shown",
                ));
            }
            // As for memory: without the controller nothing narrows the machine's swap.
            let origin = Origin::Unavailable("no memory controller");
            return Self {
                total: host.swap_total,
                free: host.swap_free.min(host.swap_total),
                total_origin: origin,
                free_origin: origin,
            };
        };
        let (total, total_origin) = match swap.limit.value {
            Limit::Value(limit) if limit.to_kib() <= host.swap_total => {
                (limit.to_kib(), swap.limit.origin)
            }
            _ => (host.swap_total, HOST),
        };
        // Lowering the limit below what is swapped out is allowed; the rest is then 0 (F8).
        let mut least = (total.less(swap.usage.value.to_kib()), swap.usage.origin);
        let room = swap.headroom.map(|room| (room.value.to_kib(), room.origin));
        for bound in room.into_iter().chain([(host.swap_free, HOST)]) {
            if bound.0 < least.0 {
                least = bound;
            }
        }
        Self {
            total,
            free: least.0,
            total_origin,
            free_origin: least.1,
        }
    }
}

/// Appends the container's `/proc/swaps`: the kernel's header and, with swap, one line.
///
/// # Errors
/// When the snapshot lacks the host's meminfo.
pub fn render(
    snapshot: &Snapshot,
    policy: &ViewPolicy,
    out: &mut Vec<u8>,
) -> Result<(), AnswerError> {
    let text = snapshot.host.meminfo.as_deref();
    let text = text.ok_or(AnswerError::Absent("the host's /proc/meminfo"))?;
    let swap = SwapView::derive(snapshot, &HostMeminfo::parse(text), policy);
    // The kernel's swap_show: the name padded to 40 columns, tabs that keep numbers under
    // their heading while they have fewer than eight digits (F33).
    out.extend_from_slice(b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
    if swap.total == Kib::ZERO {
        return Ok(());
    }
    out.extend_from_slice(b"none                                    virtual\t\t");
    for kib in [swap.total, swap.total.less(swap.free)] {
        put_u64(out, kib.0);
        out.extend_from_slice(if kib.0 < 10_000_000 { b"\t\t" } else { b"\t" });
    }
    out.extend_from_slice(b"0\n");
    Ok(())
}

/// Where the line comes from.
pub(super) fn why(snapshot: &Snapshot, policy: &ViewPolicy) -> (Origin, &'static str) {
    let text = snapshot.host.meminfo.as_deref().unwrap_or("");
    let swap = SwapView::derive(snapshot, &HostMeminfo::parse(text), policy);
    (
        swap.total_origin,
        "Size = SwapTotal, Used = SwapTotal - SwapFree of meminfo",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;
    use crate::view::testing::{MIB, container, render_with, swap};

    fn shown(snapshot: &Snapshot, policy: &ViewPolicy) -> String {
        render_with(|out| render(snapshot, policy, out))
    }

    const HEADER: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";

    #[test]
    fn header_and_columns_are_those_of_present_kernels_f33() {
        let mut snapshot = swap(container(), Limit::Value(256 * MIB), 16 * MIB);
        assert_eq!(
            shown(&snapshot, &ViewPolicy::default()),
            format!(
                "{HEADER}none                                    virtual\t\t262144\t\t16384\t\t0\n"
            )
        );
        snapshot.host.meminfo = Some("SwapTotal: 20000000 kB\nSwapFree: 20000000 kB\n".into());
        snapshot = swap(snapshot, Limit::Max, 0);
        assert_eq!(
            shown(&snapshot, &ViewPolicy::default()),
            format!(
                "{HEADER}none                                    virtual\t\t20000000\t0\t\t0\n"
            )
        );
    }

    #[test]
    fn no_swap_shows_the_header_alone() {
        let mut snapshot = swap(container(), Limit::Value(0), 0);
        assert_eq!(shown(&snapshot, &ViewPolicy::default()), HEADER);
        snapshot.swap = None;
        assert_eq!(shown(&snapshot, &ViewPolicy::default()), HEADER);
        let off = ViewPolicy {
            swap: false,
            ..ViewPolicy::default()
        };
        assert_eq!(shown(&swap(container(), Limit::Max, MIB), &off), HEADER);
    }

    #[test]
    fn without_a_memory_controller_swap_is_the_machines_as_in_meminfo() {
        let mut snapshot = container();
        (snapshot.memory, snapshot.swap) = (None, None);
        let text = shown(&snapshot, &ViewPolicy::default());
        assert!(text.ends_with("\t1048572\t\t48572\t\t0\n"), "{text}");
    }

    #[test]
    fn swap_turned_on_later_shows_at_the_next_read_f13() {
        let mut snapshot = swap(container(), Limit::Value(MIB), 0);
        snapshot.host.meminfo = Some("SwapTotal: 0 kB\nSwapFree: 0 kB\n".into());
        assert_eq!(shown(&snapshot, &ViewPolicy::default()), HEADER);
        snapshot.host.meminfo = Some("SwapTotal: 2048 kB\nSwapFree: 2048 kB\n".into());
        assert!(shown(&snapshot, &ViewPolicy::default()).contains("\t1024\t\t0\t\t0\n"));
    }

    #[test]
    fn a_limit_lowered_below_use_shows_full_swap_not_a_wrap_f8() {
        let snapshot = swap(container(), Limit::Value(8 * MIB), 64 * MIB);
        assert!(shown(&snapshot, &ViewPolicy::default()).ends_with("\t8192\t\t8192\t\t0\n"));
        let host = HostMeminfo::parse(snapshot.host.meminfo.as_deref().unwrap());
        let view = SwapView::derive(&snapshot, &host, &ViewPolicy::default());
        assert_eq!(view.free, Kib::ZERO);
    }

    #[test]
    fn free_swap_is_never_more_than_the_host_has() {
        let mut snapshot = swap(container(), Limit::Value(512 * MIB), 0);
        snapshot.host.meminfo = Some("SwapTotal: 1048576 kB\nSwapFree: 1000 kB\n".into());
        let host = HostMeminfo::parse(snapshot.host.meminfo.as_deref().unwrap());
        let view = SwapView::derive(&snapshot, &host, &ViewPolicy::default());
        assert_eq!((view.total, view.free), (Kib(524_288), Kib(1000)));
        assert_eq!(view.free_origin, HOST);
        assert_eq!(Bytes(MIB).to_kib(), Kib(1024));
    }
}
