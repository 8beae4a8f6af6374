//! What the holder counts, asked over its control socket.

use std::path::PathBuf;
use std::time::Duration;

use lxcfs_holder::control::{Request, ask};

use super::metrics::{
    ANSWERS, CONNECTION_WAITING, Figures, POISONED, REPLAYED, STUCK_WORKERS, Source, UPGRADES,
    WORKER_DEATHS,
};

/// A holder that does not answer in this time is too busy to be counted.
const HOLDER_PATIENCE: Duration = Duration::from_millis(500);

/// What the holder counts, asked over its control socket.
#[derive(Debug)]
pub struct Holder(pub PathBuf);

impl Holder {
    /// The holder's facts as `key=value` lines; empty when it does not answer.
    #[must_use]
    pub fn status(&self) -> String {
        match ask(&self.0, &Request::Status, HOLDER_PATIENCE) {
            Ok(Ok(text)) => text,
            _ => String::new(),
        }
    }
}

impl Source for Holder {
    fn figures(&self, out: &mut Figures) {
        let status = self.status();
        for (key, family) in [
            ("waiting", CONNECTION_WAITING),
            ("answers", ANSWERS),
            ("worker_deaths", WORKER_DEATHS),
            ("stuck_workers", STUCK_WORKERS),
            ("upgrades", UPGRADES),
            ("replayed_requests", REPLAYED),
            ("poisoned_requests", POISONED),
        ] {
            if let Some(value) = value_of(&status, key).and_then(|value| value.parse().ok()) {
                out.count(family, &[], value);
            }
        }
    }
}

/// The value of `key` in the holder's status.
#[must_use]
pub fn value_of<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status
        .lines()
        .filter_map(|line| line.split_once('='))
        .find_map(|(known, value)| (known == key).then_some(value))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::metrics::Metrics;

    #[test]
    fn a_status_of_any_holder_is_read_by_its_keys() {
        let status = "mountpoint=/m\nwaiting=unknown\nanswers=12\nfuture=1\n";
        assert_eq!(value_of(status, "answers"), Some("12"));
        assert_eq!(value_of(status, "upgrades"), None);
        let text = Metrics::new(vec![Arc::new(Holder("/nonexistent".into()))]).text();
        assert!(
            !text.contains("lxcfs_"),
            "nobody answers, nothing is claimed: {text}"
        );
    }
}
