//! Certificates in files that somebody else renews (cert-manager through a mounted
//! Secret). Contents are compared, not times: the kubelet swaps a symlink.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::authority::valid_until;
use crate::server::State;
use crate::server::tls::TlsError;

/// Why the files cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read.
    #[error("cannot read {path}: mount the certificate's Secret there")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// They are no certificate and key.
    #[error("{path} cannot be served")]
    Tls {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: TlsError,
    },
}

/// Loads `tls.crt` and `tls.key` of a directory whenever they change, for ever. While
/// they are missing or broken the last good pair is served.
pub async fn follow(state: Arc<State>, directory: PathBuf, every: Duration) {
    let mut last = None;
    let mut complained = false;
    loop {
        match load(&state, &directory, &mut last) {
            Ok(true) => {
                complained = false;
                state.metrics.certificate_event("loaded");
                info!(directory = %directory.display(), "certificate loaded");
            }
            Ok(false) => complained = false,
            Err(error) => {
                state.metrics.certificate_event("unreadable");
                if !complained {
                    let error = crate::chain(&error);
                    warn!(error, "the last good certificate stays, if there was one");
                }
                complained = true;
            }
        }
        tokio::time::sleep(every).await;
    }
}

type Pair = (Vec<u8>, Vec<u8>);

fn load(state: &State, directory: &Path, last: &mut Option<Pair>) -> Result<bool, FilesError> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|source| FilesError::Read { path, source })
    };
    let pair = (read("tls.crt")?, read("tls.key")?);
    if last.as_ref() == Some(&pair) {
        return Ok(false);
    }
    let set = state.certificate.set(&pair.0, &pair.1);
    set.map_err(|source| FilesError::Tls {
        path: directory.join("tls.crt"),
        source,
    })?;
    if let Some(until) = valid_until(&String::from_utf8_lossy(&pair.0)) {
        state.metrics.certificate_expiry.set(until.unix_timestamp());
    }
    *last = Some(pair);
    Ok(true)
}
