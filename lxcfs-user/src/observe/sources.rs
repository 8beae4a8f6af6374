//! Figures that others keep: fallbacks, features, this process.

use std::sync::Arc;

use super::metrics::{
    BUILD_INFO, CPU_SECONDS, FALLBACKS, FEATURE, Figures, RESIDENT_BYTES, START_TIME, Source,
};
use crate::bpf::FeatureState;
use crate::fallback::Fallbacks;

/// The version, once.
#[derive(Debug)]
pub struct Build;

impl Source for Build {
    fn figures(&self, out: &mut Figures) {
        out.count(BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
    }
}

impl Source for Fallbacks {
    fn figures(&self, out: &mut Figures) {
        for (fallback, count) in self.iter() {
            out.count(FALLBACKS, &[fallback.field(), fallback.reason()], count);
        }
    }
}

/// The states the collector reported when it started.
#[derive(Debug)]
pub struct Features(pub Arc<Vec<FeatureState>>);

impl Source for Features {
    fn figures(&self, out: &mut Figures) {
        for feature in self.0.iter() {
            let state = if feature.on { "on" } else { "off" };
            out.count(FEATURE, &[feature.name.name(), state], 1);
        }
    }
}

/// This process, as Prometheus's client libraries report it.
#[derive(Debug, Default)]
pub struct Process;

impl Source for Process {
    fn figures(&self, out: &mut Figures) {
        let own = procfs_numbers().unwrap_or_default();
        out.count(RESIDENT_BYTES, &[], own.resident_bytes);
        out.number(CPU_SECONDS, &[], own.cpu_seconds);
        out.number(START_TIME, &[], own.start_seconds);
    }
}

#[derive(Debug, Default)]
struct Own {
    resident_bytes: u64,
    cpu_seconds: f64,
    start_seconds: f64,
}

fn procfs_numbers() -> Option<Own> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // comm may hold spaces and parentheses; the fields start after the last one.
    let (_, fields) = stat.rsplit_once(')')?;
    let field = |number: usize| {
        fields
            .split_ascii_whitespace()
            .nth(number - 3)?
            .parse::<u64>()
            .ok()
    };
    let (page_size, user_hz) = crate::host::reader::page_size_and_user_hz();
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    let seconds = |ticks: u64| ticks as f64 / user_hz.max(1) as f64;
    Some(Own {
        resident_bytes: field(24)?.saturating_mul(page_size.0),
        cpu_seconds: seconds(field(14)?.saturating_add(field(15)?)),
        start_seconds: boot + seconds(field(22)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fallback::Fallback;
    use crate::observe::metrics::Metrics;

    #[test]
    fn every_fallback_has_a_counter_from_the_start() {
        let fallbacks = Arc::new(Fallbacks::default());
        fallbacks.count(Fallback::SwapUnknown);
        let text = Metrics::new(vec![fallbacks]).text();
        for which in Fallback::ALL {
            let value = u64::from(*which == Fallback::SwapUnknown);
            let line = format!(
                "lxcfs_fallbacks_total{{field=\"{}\",reason=\"{}\"}} {value}\n",
                which.field(),
                which.reason()
            );
            assert!(text.contains(&line), "{line} in {text}");
        }
    }

    #[test]
    fn this_process_has_memory_a_past_and_a_start() {
        let own = procfs_numbers().unwrap();
        assert!(own.resident_bytes > 100_000, "{own:?}");
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        assert!(own.start_seconds > now - 86_400.0 && own.start_seconds < now + 2.0);
    }
}
