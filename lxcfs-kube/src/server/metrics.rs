//! Metric families of the webhook and their text form.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::review::{Answer, outcome_word};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// Everything the webhook counts. Labels come from closed lists, never from a request.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    decisions: Family<OutcomeLabel, Counter>,
    skips: Family<ReasonLabel, Counter>,
    faults: Family<KindLabel, Counter>,
    certificate_events: Family<KindLabel, Counter>,
    /// Time from the whole request read to the answer ready.
    pub seconds: Histogram,
    /// Requests being answered.
    pub in_flight: Gauge,
    /// End of the serving certificate's validity, seconds since the epoch.
    pub certificate_expiry: Gauge,
    /// 1 while the webhook configuration trusts exactly our authorities.
    pub ca_bundle_in_step: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("lxcfs_webhook");
        let decisions = Family::default();
        let skips = Family::default();
        let faults = Family::default();
        let certificate_events = Family::default();
        let seconds = Histogram::new([
            0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
        ]);
        let (in_flight, certificate_expiry) = (Gauge::default(), Gauge::default());
        let ca_bundle_in_step = Gauge::default();
        registry.register("decisions", "Reviews by outcome", Family::clone(&decisions));
        registry.register(
            "skips",
            "Pods and files left out, by reason",
            Family::clone(&skips),
        );
        registry.register(
            "faults",
            "Requests that could not be read as they should, by kind",
            Family::clone(&faults),
        );
        registry.register(
            "certificate_events",
            "What happened to certificates and the configuration's caBundle, by kind",
            Family::clone(&certificate_events),
        );
        registry.register(
            "request_seconds",
            "Time to decide a review",
            seconds.clone(),
        );
        registry.register("in_flight", "Reviews being answered", in_flight.clone());
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "End of the serving certificate's validity",
            certificate_expiry.clone(),
        );
        registry.register(
            "ca_bundle_in_step",
            "Whether the webhook configuration trusts our authorities",
            ca_bundle_in_step.clone(),
        );
        registry.register(
            "build",
            "Version of this program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self {
            registry,
            decisions,
            skips,
            faults,
            certificate_events,
            seconds,
            in_flight,
            certificate_expiry,
            ca_bundle_in_step,
        }
    }
}

impl Metrics {
    /// Records an answered review.
    pub fn record(&self, answer: &Answer) {
        let outcome = outcome_word(answer.decision.outcome);
        self.decisions
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
        for skip in &answer.decision.skipped {
            let reason = skip.reason.word();
            self.skips.get_or_create(&ReasonLabel { reason }).inc();
        }
        if let Some(fault) = answer.fault {
            self.fault(fault.word());
        }
    }

    /// Counts a request or connection that went wrong.
    pub fn fault(&self, kind: &'static str) {
        self.faults.get_or_create(&KindLabel { kind }).inc();
    }

    /// Counts something that happened to certificates.
    pub fn certificate_event(&self, kind: &'static str) {
        self.certificate_events
            .get_or_create(&KindLabel { kind })
            .inc();
    }

    /// The classic Prometheus text format, which every scraper and promtool reads.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        classic(&out)
    }
}

/// OpenMetrics describes a counter without the `_total` its samples carry, an info
/// without `_info`, and ends in a marker; the classic format wants the sample's name.
fn classic(open_metrics: &str) -> String {
    let types: Vec<(&str, &str)> = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .filter(|(_, kind)| matches!(*kind, "counter" | "info"))
        .collect();
    let mut out = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| *line != "# EOF") {
        let described = line
            .strip_prefix("# HELP ")
            .or_else(|| line.strip_prefix("# TYPE "))
            .and_then(|rest| rest.split_once(' '));
        let suffix = described.and_then(|(name, rest)| {
            let (_, kind) = types.iter().find(|(known, _)| *known == name)?;
            let suffix = if *kind == "counter" {
                "_total"
            } else {
                "_info"
            };
            let rest = if line.starts_with("# TYPE") && *kind == "info" {
                "gauge"
            } else {
                rest
            };
            Some(format!("{} {name}{suffix} {rest}", &line[..6]))
        });
        match suffix {
            Some(line) => out.push_str(&line),
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}
