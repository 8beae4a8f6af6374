//! Keeps the self-managed certificates: Secret, server and webhook configuration in step.
//!
//! Every replica runs it; the Secret's resourceVersion decides who wins a change, so
//! there is no leader. Needs `get` and `update` on one Secret and `get` and `patch` on one
//! MutatingWebhookConfiguration, both by name; both come with the manifests.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::json;
use time::OffsetDateTime;
use tracing::{debug, info, warn};

use super::authority::{AuthorityError, Stored, perform, valid_until};
use super::rotation::{Lifetimes, Step, next_step};
use crate::server::State;
use crate::server::tls::TlsError;

/// What is kept where.
#[derive(Clone, Debug)]
pub struct Names {
    /// Namespace of the Secret and the Service.
    pub namespace: String,
    /// The Secret.
    pub secret: String,
    /// The Service the API server calls; the certificate is for its names.
    pub service: String,
    /// The webhook configuration.
    pub configuration: String,
}

impl Names {
    /// DNS names of the serving certificate.
    pub fn dns(&self) -> Vec<String> {
        let Self {
            namespace, service, ..
        } = self;
        vec![
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
        ]
    }
}

/// Why a pass did not end well.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The API server did not answer, or refused.
    #[error("the API server: {action}")]
    Api {
        /// What was tried on what.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<Error>,
    },
    /// Certificates could not be made.
    #[error("certificates in secret {0} cannot be renewed")]
    Authority(String, #[source] AuthorityError),
    /// The serving certificate in the Secret cannot be used.
    #[error("the certificate in secret {0} cannot be served; delete its data to start over")]
    Tls(String, #[source] TlsError),
    /// Others changed the Secret each time.
    #[error("secret {0} changed under us too often")]
    Contended(String),
}

/// Keeps one set of certificates.
pub struct Keeper {
    client: Client,
    names: Names,
    lifetimes: Lifetimes,
    state: Arc<State>,
    // Serving certificate last given to the server.
    served: Option<String>,
}

const ATTEMPTS: usize = 5;

impl Keeper {
    /// A keeper that has not looked yet.
    pub fn new(client: Client, names: Names, lifetimes: Lifetimes, state: Arc<State>) -> Self {
        Self {
            client,
            names,
            lifetimes,
            state,
            served: None,
        }
    }

    /// Looks every `every`, for ever; after a failure sooner, then less and less often.
    /// Whatever fails, the server goes on with the certificate it has.
    pub async fn run(mut self, every: Duration) {
        const FIRST: Duration = Duration::from_secs(1);
        let mut pause = FIRST;
        loop {
            match self.pass(OffsetDateTime::now_utc()).await {
                Ok(()) => {
                    pause = FIRST;
                    tokio::time::sleep(every).await;
                }
                Err(error) => {
                    self.state.metrics.certificate_event("failed");
                    warn!(error = crate::chain(&error), retry_in = ?pause, "certificates");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(every);
                }
            }
        }
    }

    /// One look: at most a few steps of rotation, then the server and the configuration.
    pub async fn pass(&mut self, now: OffsetDateTime) -> Result<(), KeeperError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let name = self.names.secret.clone();
        let dns = self.names.dns();
        for _ in 0..ATTEMPTS {
            let mut secret = self.api("get secret", &name, secrets.get(&name).await)?;
            let data = secret.data.take().unwrap_or_default();
            let data = data
                .into_iter()
                .map(|(key, value)| (key, value.0))
                .collect();
            let stored = Stored::from_data(&data);
            let facts = stored.as_ref().and_then(|stored| stored.facts(&dns));
            let step = next_step(facts, now, &self.lifetimes);
            if let (Step::Promote, Some(stored)) = (step, &stored)
                && self.publish_bundle(&stored.bundle()).await?
            {
                // Trusted only since this moment: it signs after the next look.
                return Ok(());
            }
            let changed = perform(step, stored.clone(), &dns, now, &self.lifetimes)
                .map_err(|error| KeeperError::Authority(name.clone(), error))?;
            let Some(changed) = changed else {
                if let Some(stored) = stored {
                    return self.publish(&stored).await;
                }
                continue;
            };
            let data = changed.to_data().into_iter();
            secret.data = Some(data.map(|(key, value)| (key, ByteString(value))).collect());
            match secrets
                .replace(&name, &PostParams::default(), &secret)
                .await
            {
                Ok(_) => {
                    info!(?step, secret = name, "certificates changed");
                    self.state.metrics.certificate_event(event(step));
                }
                // Another replica was first: look again.
                Err(Error::Api(status)) if status.code == 409 => debug!("secret changed"),
                Err(error) => return self.api("update secret", &name, Err(error)),
            }
        }
        Err(KeeperError::Contended(name))
    }

    /// Trust first, then the certificate: a client that asks between the two knows both.
    async fn publish(&mut self, stored: &Stored) -> Result<(), KeeperError> {
        let trusted = self.publish_bundle(&stored.bundle()).await;
        self.state
            .metrics
            .ca_bundle_in_step
            .set(trusted.is_ok().into());
        let serving = &stored.serving;
        if self.served.as_ref() != Some(&serving.certificate) {
            let (certificate, key) = (serving.certificate.as_bytes(), serving.key.as_bytes());
            let set = self.state.certificate.set(certificate, key);
            set.map_err(|error| KeeperError::Tls(self.names.secret.clone(), error))?;
            if let Some(until) = valid_until(&serving.certificate) {
                self.state
                    .metrics
                    .certificate_expiry
                    .set(until.unix_timestamp());
            }
            self.state.metrics.certificate_event("loaded");
            info!("serving a new certificate");
            self.served = Some(serving.certificate.clone());
        }
        trusted.map(|_changed| ())
    }

    /// Whether it had to be changed.
    async fn publish_bundle(&self, bundle: &str) -> Result<bool, KeeperError> {
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let name = &self.names.configuration;
        let found = configurations.get(name).await;
        let found = self.api("get mutatingwebhookconfiguration", name, found)?;
        let webhooks = found.webhooks.unwrap_or_default();
        let wanted = ByteString(bundle.as_bytes().to_vec());
        let stale: Vec<_> = webhooks
            .iter()
            .filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&wanted))
            // Merged by name: nothing else of the configuration is touched.
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": wanted}}))
            .collect();
        if stale.is_empty() {
            return Ok(false);
        }
        let patch = Patch::Strategic(json!({"webhooks": stale}));
        let patched = configurations
            .patch(name, &PatchParams::default(), &patch)
            .await;
        self.api("patch mutatingwebhookconfiguration", name, patched)?;
        self.state.metrics.certificate_event("ca-bundle");
        info!(configuration = name, "caBundle brought in step");
        Ok(true)
    }

    fn api<T>(&self, action: &str, name: &str, result: Result<T, Error>) -> Result<T, KeeperError> {
        result.map_err(|source| KeeperError::Api {
            action: format!("cannot {action} {name}"),
            source: Box::new(source),
        })
    }
}

const fn event(step: Step) -> &'static str {
    match step {
        Step::Create => "created",
        Step::Introduce => "authority-introduced",
        Step::Promote => "authority-promoted",
        Step::Forget => "authority-forgotten",
        Step::Renew => "renewed",
        Step::Keep => "kept",
    }
}
