//! The serving certificate, replaceable while connections are open: a handshake takes
//! whatever is current at that moment.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM text holds no certificate.
    #[error("no certificate in the PEM text: expected a block BEGIN CERTIFICATE")]
    NoCertificate,
    /// A PEM block is broken.
    #[error("the PEM text is broken")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// Key and certificate do not fit, or the key is of an unknown kind.
    #[error("the private key does not fit the certificate, or is of an unknown kind")]
    Key(#[source] rustls::Error),
    /// No protocol version in common; a fault of the build.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// Holds the current certificate.
#[derive(Debug, Default)]
pub struct CurrentCertificate {
    // None until the first one is known: handshakes fail, nothing else does.
    key: RwLock<Option<Arc<CertifiedKey>>>,
}

impl CurrentCertificate {
    /// Replaces the certificate for all later handshakes.
    pub fn set(&self, certificate_pem: &[u8], key_pem: &[u8]) -> Result<(), TlsError> {
        let chain = CertificateDer::pem_slice_iter(certificate_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(TlsError::Pem)?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(TlsError::Pem)?;
        let provider = ring::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(TlsError::Key)?;
        let mut current = self.key.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(Arc::new(key));
        Ok(())
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        let current = self.key.read().unwrap_or_else(PoisonError::into_inner);
        current.is_some()
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.key.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }
}

/// A server configuration that asks `certificate` at each handshake. TLS 1.2 and 1.3,
/// HTTP/1.1; session resumption is off, so a rotation reaches every new connection.
pub fn server_config(certificate: Arc<CurrentCertificate>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
