//! `/proc/pressure/*`: the container cgroup's own pressure text, unchanged.

use crate::engine::AnswerError;
use crate::snapshot::{Controller, Inputs, Origin, PressureKind, Snapshot};

/// What [`render`] needs.
pub const INPUTS: Inputs = Inputs::PRESSURE;

/// Appends the cgroup's pressure of `kind`; the kernel's text is already in its format.
///
/// # Errors
/// When the kernel has no PSI or not of this kind: never the host's pressure instead (F3).
pub fn render(
    snapshot: &Snapshot,
    kind: PressureKind,
    out: &mut Vec<u8>,
) -> Result<(), AnswerError> {
    let text = snapshot.pressure.get(kind as usize);
    let text = text.and_then(Option::as_deref);
    let text = text.ok_or(AnswerError::Absent("pressure of this kind on this kernel"))?;
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Where the lines come from.
pub(super) fn why(kind: PressureKind) -> (Origin, &'static str) {
    let file = match kind {
        PressureKind::Cpu => "cpu.pressure",
        PressureKind::Memory => "memory.pressure",
        PressureKind::Io => "io.pressure",
        PressureKind::Irq => "irq.pressure",
    };
    (
        Origin::Cgroup {
            controller: Controller::Unified,
            levels_up: 0,
            file,
        },
        "the cgroup's own pressure",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{container, render_with};

    #[test]
    fn every_kind_is_the_cgroups_own_f3() {
        let text = "some avg10=0.28 avg60=1.59 avg300=3.19 total=34991335\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        for kind in [
            PressureKind::Cpu,
            PressureKind::Memory,
            PressureKind::Io,
            PressureKind::Irq,
        ] {
            let mut snapshot = container();
            snapshot.pressure[kind as usize] = Some(text.into());
            assert_eq!(render_with(|out| render(&snapshot, kind, out)), text);
        }
    }

    #[test]
    fn without_psi_the_file_is_absent() {
        let shown = render(&container(), PressureKind::Irq, &mut Vec::new());
        assert!(matches!(shown, Err(AnswerError::Absent(_))));
    }
}
