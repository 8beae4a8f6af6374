//! Keys and certificates in PEM, as they lie in the Secret, and the steps that change
//! them. Deterministic but for the keys.

use std::collections::BTreeMap;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::rotation::{Facts, Lifetimes, Step, Validity};

/// Certificates begin this much in the past, for API servers whose clock is behind.
pub const BACKDATED: std::time::Duration = std::time::Duration::from_secs(3600);

/// Why keys or certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A name is no DNS name, or the stored key does not fit.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// A date outside what X.509 can express.
    #[error("a validity outside what a certificate can express")]
    Date(#[from] time::error::ComponentRange),
}

/// A certificate and its key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// Certificate.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

// A key must never reach a log.
impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// Everything in the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The authority that signs.
    pub authority: Pair,
    /// The authority that will sign.
    pub next: Option<Pair>,
    /// The certificate of the authority that signed before.
    pub previous: Option<String>,
    /// What the server shows.
    pub serving: Pair,
}

const AUTHORITY_CERT: &str = "authority.crt";
const AUTHORITY_KEY: &str = "authority.key";
const NEXT_CERT: &str = "next-authority.crt";
const NEXT_KEY: &str = "next-authority.key";
const PREVIOUS_CERT: &str = "previous-authority.crt";
const SERVING_CERT: &str = "tls.crt";
const SERVING_KEY: &str = "tls.key";

impl Stored {
    /// Reads the Secret's data; `None` when something necessary is missing or no text.
    pub fn from_data(data: &BTreeMap<String, Vec<u8>>) -> Option<Self> {
        let text = |key: &str| String::from_utf8(data.get(key)?.clone()).ok();
        let pair = |certificate, key| {
            Some(Pair {
                certificate: text(certificate)?,
                key: text(key)?,
            })
        };
        Some(Self {
            authority: pair(AUTHORITY_CERT, AUTHORITY_KEY)?,
            next: pair(NEXT_CERT, NEXT_KEY),
            previous: text(PREVIOUS_CERT),
            serving: pair(SERVING_CERT, SERVING_KEY)?,
        })
    }

    /// The Secret's data.
    pub fn to_data(&self) -> BTreeMap<String, Vec<u8>> {
        let next = self.next.as_ref();
        [
            (AUTHORITY_CERT, Some(&self.authority.certificate)),
            (AUTHORITY_KEY, Some(&self.authority.key)),
            (NEXT_CERT, next.map(|next| &next.certificate)),
            (NEXT_KEY, next.map(|next| &next.key)),
            (PREVIOUS_CERT, self.previous.as_ref()),
            (SERVING_CERT, Some(&self.serving.certificate)),
            (SERVING_KEY, Some(&self.serving.key)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.clone().into_bytes())))
        .collect()
    }

    /// What clients have to trust: every authority known, the signing one first.
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| next.certificate.as_str());
        let all = [
            Some(self.authority.certificate.as_str()),
            next,
            self.previous.as_deref(),
        ];
        let lines = all.into_iter().flatten().flat_map(str::lines);
        lines.flat_map(|line| [line.trim_end(), "\n"]).collect()
    }

    /// What rotation needs to know; `None` when a certificate cannot be read.
    pub fn facts(&self, names: &[String]) -> Option<Facts> {
        let next = match &self.next {
            Some(next) => Some(validity(&next.certificate)?),
            None => None,
        };
        Some(Facts {
            authority: validity(&self.authority.certificate)?,
            next,
            previous: self.previous.as_deref().and_then(validity),
            serving: validity(&self.serving.certificate)?,
            serving_fits: fits(
                &self.serving.certificate,
                &self.authority.certificate,
                names,
            ),
        })
    }
}

/// Performs one step on what is stored.
pub fn perform(
    step: Step,
    stored: Option<Stored>,
    names: &[String],
    now: OffsetDateTime,
    lifetimes: &Lifetimes,
) -> Result<Option<Stored>, AuthorityError> {
    let created = || -> Result<Stored, AuthorityError> {
        let authority = new_authority(now, lifetimes)?;
        Ok(Stored {
            serving: issue(&authority, names, now, lifetimes)?,
            authority,
            next: None,
            previous: None,
        })
    };
    let Some(mut stored) = stored else {
        return Ok(Some(created()?));
    };
    match step {
        Step::Keep => return Ok(None),
        Step::Create => stored = created()?,
        Step::Introduce => stored.next = Some(new_authority(now, lifetimes)?),
        Step::Forget => stored.previous = None,
        Step::Renew => stored.serving = issue(&stored.authority, names, now, lifetimes)?,
        Step::Promote => {
            if let Some(next) = stored.next.take() {
                stored.previous = Some(stored.authority.certificate);
                stored.authority = next;
                stored.serving = issue(&stored.authority, names, now, lifetimes)?;
            }
        }
    }
    Ok(Some(stored))
}

fn new_authority(now: OffsetDateTime, lifetimes: &Lifetimes) -> Result<Pair, AuthorityError> {
    let mut params = params(&[], now, lifetimes.authority)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // A name of its own for each authority: a verifier may look issuers up by name.
    let name = format!("lxcfs webhook authority {}", now.unix_timestamp());
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn issue(
    authority: &Pair,
    names: &[String],
    now: OffsetDateTime,
    lifetimes: &Lifetimes,
) -> Result<Pair, AuthorityError> {
    let mut params = params(names, now, lifetimes.serving)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
    params.use_authority_key_identifier_extension = true;
    params
        .distinguished_name
        .push(DnType::CommonName, "lxcfs webhook");
    let signer = KeyPair::from_pem(&authority.key)?;
    let signer = Issuer::from_ca_cert_pem(&authority.certificate, signer)?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &signer)?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn params(
    names: &[String],
    now: OffsetDateTime,
    lifetime: std::time::Duration,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    // Certificates count whole seconds.
    params.not_before = (now - BACKDATED).replace_nanosecond(0)?;
    params.not_after = (now + lifetime).replace_nanosecond(0)?;
    Ok(params)
}

/// End of validity of the first certificate of a PEM text.
pub fn valid_until(pem: &str) -> Option<OffsetDateTime> {
    validity(pem).map(|validity| validity.until)
}

fn validity(pem: &str) -> Option<Validity> {
    with_certificate(pem, |certificate| Validity {
        from: certificate.validity().not_before.to_datetime(),
        until: certificate.validity().not_after.to_datetime(),
    })
}

fn with_certificate<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(look(&certificate))
}

/// Whether a serving certificate was issued by this authority for exactly these names.
fn fits(serving: &str, authority: &str, names: &[String]) -> bool {
    let subject = with_certificate(authority, |authority| authority.subject().to_string());
    let issuer = with_certificate(serving, |serving| serving.issuer().to_string());
    let named = with_certificate(serving, |serving| {
        let Ok(Some(alternative)) = serving.subject_alternative_name() else {
            return false;
        };
        let is = |name: &GeneralName<'_>, wanted: &str| matches!(name, GeneralName::DNSName(found) if *found == wanted);
        let found = &alternative.value.general_names;
        names
            .iter()
            .all(|wanted| found.iter().any(|name| is(name, wanted)))
    });
    subject.is_some() && subject == issuer && named == Some(true)
}
