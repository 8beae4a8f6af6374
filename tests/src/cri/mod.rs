//! A client of the container runtime interface, as kubelet is one.

pub mod api;

use std::path::Path;
use std::time::Duration;

use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Most time a call may take on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection to a runtime's socket.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    /// Prepares calls to `socket`; each call connects when it must, so the runtime may restart.
    ///
    /// # Panics
    /// When there are no threads.
    pub fn new(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap_or_else(|error| panic!("no threads: {error}"));
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .unwrap_or_else(|error| panic!("{}: {error}", socket.display()))
            .timeout(PATIENCE);
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        Self { runtime, channel }
    }

    /// Calls a method of the runtime service.
    ///
    /// # Errors
    /// What the runtime answers instead of doing it.
    ///
    /// # Panics
    /// When `method` is no path.
    pub fn try_call<Q, A>(&self, method: &str, request: Q) -> Result<A, tonic::Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))
            .unwrap_or_else(|error| panic!("{method}: {error}"));
        self.runtime.block_on(async {
            let mut grpc = Grpc::new(self.channel.clone());
            let unready = |error| tonic::Status::unavailable(format!("{error}"));
            grpc.ready().await.map_err(unready)?;
            let request = tonic::Request::new(request);
            let answer = grpc.unary(request, path, ProstCodec::<Q, A>::default());
            Ok(answer.await?.into_inner())
        })
    }

    /// Calls a method of the runtime service that must succeed.
    ///
    /// # Panics
    /// With the runtime's answer otherwise.
    pub fn call<Q, A>(&self, method: &str, request: Q) -> A
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.try_call(method, request)
            .unwrap_or_else(|status| panic!("{method}: {status}"))
    }
}
