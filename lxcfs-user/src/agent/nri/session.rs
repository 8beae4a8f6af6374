//! One connection to a runtime, from registering to its end.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use prost::Message as _;

use super::ttrpc::{Message, Request, Response, code};
use super::{NriError, Plugin, api, mux, ttrpc};

/// Limits and identity of a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Name under which the plugin registers.
    pub name: String,
    /// Two digits: when it is called among the plugins.
    pub index: String,
    /// Time after which a call is answered without waiting for the plugin any longer.
    pub bound: Duration,
    /// Calls worked on at the same time; more are answered at once without the plugin.
    pub concurrency: usize,
    /// Time the runtime has to configure the plugin.
    pub registration: Duration,
    /// Containers and pods remembered of one synchronisation in parts.
    pub synchronize_limit: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            name: "lxcfs".into(),
            // Late: other plugins' mounts are known by then.
            index: "90".into(),
            bound: Duration::from_millis(900),
            concurrency: 32,
            registration: Duration::from_secs(5),
            synchronize_limit: 20_000,
        }
    }
}

/// Writes to the socket from several threads.
type Writer = Arc<Mutex<UnixStream>>;

/// A connected plugin.
pub struct Session {
    reader: UnixStream,
    writer: Writer,
    plugin: Arc<dyn Plugin>,
    options: SessionOptions,
    working: Arc<AtomicUsize>,
    configured: bool,
    pods: Vec<api::PodSandbox>,
    containers: Vec<api::Container>,
}

/// The number of our only call to the runtime; a client's streams are odd.
const REGISTER_STREAM: u32 = 1;

impl Session {
    /// Connects to the runtime's socket.
    ///
    /// # Errors
    /// There is no such socket, or nobody listens.
    pub fn connect(
        socket: &Path,
        plugin: Arc<dyn Plugin>,
        options: SessionOptions,
    ) -> Result<Self, NriError> {
        let stream = UnixStream::connect(socket).map_err(NriError::Socket)?;
        Self::over(stream, plugin, options)
    }

    /// Uses a connection that exists.
    ///
    /// # Errors
    /// The socket cannot be duplicated.
    pub fn over(
        stream: UnixStream,
        plugin: Arc<dyn Plugin>,
        options: SessionOptions,
    ) -> Result<Self, NriError> {
        // A runtime that stops reading must not hold up whoever answers it.
        stream
            .set_write_timeout(Some(options.bound))
            .and_then(|()| stream.set_read_timeout(Some(options.registration)))
            .map_err(NriError::Socket)?;
        let reader = stream.try_clone().map_err(NriError::Socket)?;
        Ok(Self {
            reader,
            writer: Arc::new(Mutex::new(stream)),
            plugin,
            options,
            working: Arc::default(),
            configured: false,
            pods: Vec::new(),
            containers: Vec::new(),
        })
    }

    /// A handle whose `shutdown` ends the session.
    ///
    /// # Errors
    /// The socket cannot be duplicated.
    pub fn stopper(&self) -> Result<UnixStream, NriError> {
        self.reader.try_clone().map_err(NriError::Socket)
    }

    /// Registers and serves until the runtime closes the socket.
    ///
    /// # Errors
    /// Why it ended, when not by the runtime closing an established session.
    pub fn run(mut self) -> Result<(), NriError> {
        let register = Request {
            service: api::RUNTIME_SERVICE.into(),
            method: "RegisterPlugin".into(),
            payload: api::RegisterPluginRequest {
                plugin_name: self.options.name.clone(),
                plugin_idx: self.options.index.clone(),
            }
            .encode_to_vec(),
            timeout_nano: 0,
        };
        send(
            &self.writer,
            mux::RUNTIME_CONN,
            &ttrpc::request(REGISTER_STREAM, &register),
        )
        .map_err(NriError::Socket)?;
        let (mut calls, mut answers) = (ttrpc::Assembler::default(), ttrpc::Assembler::default());
        loop {
            let frame = match mux::read_frame(&mut self.reader) {
                Ok(Some(frame)) => frame,
                Ok(None) if self.configured => return Ok(()),
                Ok(None) => return Err(NriError::NotConfigured),
                Err(NriError::Socket(err))
                    if !self.configured && err.kind() == std::io::ErrorKind::WouldBlock =>
                {
                    return Err(NriError::NotConfigured);
                }
                Err(err) => return Err(err),
            };
            match frame.conn {
                mux::PLUGIN_CONN => {
                    for message in calls.push(&frame.payload)? {
                        self.called(message)?;
                    }
                }
                mux::RUNTIME_CONN => {
                    for message in answers.push(&frame.payload)? {
                        answered(message)?;
                    }
                }
                // The protocol reserves the others.
                _ => {}
            }
        }
    }

    fn reply(&self, stream: u32, response: &Response) -> Result<(), NriError> {
        send(
            &self.writer,
            mux::PLUGIN_CONN,
            &ttrpc::response(stream, response),
        )
        .map_err(NriError::Socket)
    }

    fn called(&mut self, message: Message) -> Result<(), NriError> {
        let (stream, call) = match message {
            Message::Request { stream, body } => (stream, body),
            Message::Malformed { stream } => {
                let error = Response::error(code::INVALID_ARGUMENT, "malformed request");
                return self.reply(stream, &error);
            }
            Message::Response { .. } | Message::Ignored => return Ok(()),
        };
        if call.service != api::PLUGIN_SERVICE {
            let error = Response::error(code::UNIMPLEMENTED, "no such service");
            return self.reply(stream, &error);
        }
        match self.dispatch(stream, &call) {
            Ok(Some(response)) => self.reply(stream, &response),
            Ok(None) => Ok(()),
            Err(err) => {
                // Undecodable: the container starts without us.
                self.plugin.gave_up("malformed");
                let error = Response::error(code::INVALID_ARGUMENT, err.to_string());
                self.reply(stream, &error)
            }
        }
    }

    /// Answers a call, or `None` when a thread will.
    fn dispatch(
        &mut self,
        stream: u32,
        call: &Request,
    ) -> Result<Option<Response>, prost::DecodeError> {
        let payload = call.payload.as_slice();
        let empty = || Ok(Some(Response::of(&api::Empty {})));
        match call.method.as_str() {
            "Configure" => {
                let request = api::ConfigureRequest::decode(payload)?;
                self.configured = true;
                // From now on silence only means that no container starts.
                if self.reader.set_read_timeout(None).is_err() {
                    self.plugin.gave_up("socket");
                }
                self.plugin.configured(&request);
                Ok(Some(Response::of(&api::ConfigureResponse {
                    events: api::event::mask(&[
                        api::event::CREATE_CONTAINER,
                        api::event::START_CONTAINER,
                    ]),
                })))
            }
            "Synchronize" => {
                let request = api::SynchronizeRequest::decode(payload)?;
                self.synchronize(request.pods, request.containers, request.more);
                Ok(Some(Response::of(&api::SynchronizeResponse {
                    more: request.more,
                })))
            }
            "CreateContainer" => {
                let request = api::ContainerRequest::decode(payload)?;
                let plugin = Arc::clone(&self.plugin);
                Ok(self.in_thread(stream, move || {
                    let (pod, container) = both(request);
                    let mounts = plugin.create(&pod, &container);
                    Response::of(&api::CreateContainerResponse {
                        adjust: (!mounts.is_empty()).then_some(api::ContainerAdjustment { mounts }),
                    })
                }))
            }
            "StartContainer" => {
                let request = api::ContainerRequest::decode(payload)?;
                Ok(self.start(stream, request))
            }
            "StateChange" => {
                let change = api::StateChangeEvent::decode(payload)?;
                if change.event != api::event::START_CONTAINER {
                    return empty();
                }
                let request = api::ContainerRequest {
                    pod: change.pod,
                    container: change.container,
                };
                Ok(self.start(stream, request))
            }
            // Not subscribed to; newer runtimes may have more.
            _ => empty(),
        }
    }

    fn start(&self, stream: u32, request: api::ContainerRequest) -> Option<Response> {
        let plugin = Arc::clone(&self.plugin);
        self.in_thread(stream, move || {
            let (pod, container) = both(request);
            plugin.start(&pod, &container);
            Response::of(&api::Empty {})
        })
    }

    fn synchronize(
        &mut self,
        pods: Vec<api::PodSandbox>,
        containers: Vec<api::Container>,
        more: bool,
    ) {
        let limit = self.options.synchronize_limit;
        let room = limit.saturating_sub(self.pods.len());
        self.pods.extend(pods.into_iter().take(room));
        let room = limit.saturating_sub(self.containers.len());
        self.containers.extend(containers.into_iter().take(room));
        if more {
            return;
        }
        let pods = std::mem::take(&mut self.pods);
        let containers = std::mem::take(&mut self.containers);
        let plugin = Arc::clone(&self.plugin);
        // The runtime waits for the answer, not for the healing.
        let thread = std::thread::Builder::new().name("lxcfs-nri-sync".into());
        let started = thread.spawn(move || plugin.synchronize(pods, containers));
        if started.is_err() {
            self.plugin.gave_up("threads");
        }
    }

    /// Answers in a thread: with `work`'s response, or an empty one after the bound. Gives
    /// an empty response back when too much is going on already.
    fn in_thread(
        &self,
        stream: u32,
        work: impl FnOnce() -> Response + Send + 'static,
    ) -> Option<Response> {
        let empty = || Response::of(&api::Empty {});
        let Some(place) = Place::take(&self.working, self.options.concurrency) else {
            self.plugin.gave_up("overload");
            return Some(empty());
        };
        let (writer, plugin) = (Arc::clone(&self.writer), Arc::clone(&self.plugin));
        let bound = self.options.bound;
        let (done, wait) = mpsc::channel();
        let worker = std::thread::Builder::new()
            .name("lxcfs-nri-call".into())
            .spawn(move || {
                // Nobody listens any more when the bound has passed.
                let _ = done.send(work());
                drop(place);
            });
        let answer = std::thread::Builder::new()
            .name("lxcfs-nri-reply".into())
            .spawn(move || {
                let response = wait.recv_timeout(bound).unwrap_or_else(|_| {
                    plugin.gave_up("deadline");
                    Response::of(&api::Empty {})
                });
                // A broken socket is noticed by the reader.
                let _ = send(
                    &writer,
                    mux::PLUGIN_CONN,
                    &ttrpc::response(stream, &response),
                );
            });
        if worker.is_err() {
            self.plugin.gave_up("threads");
        }
        // Without a thread to answer, answer here.
        answer.is_err().then(empty)
    }
}

/// One of the calls worked on; given back when dropped, whatever became of the work.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(working: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let place = Self(Arc::clone(working));
        (working.fetch_add(1, Ordering::AcqRel) < limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn both(request: api::ContainerRequest) -> (api::PodSandbox, api::Container) {
    (
        request.pod.unwrap_or_default(),
        request.container.unwrap_or_default(),
    )
}

fn send(writer: &Writer, conn: u32, message: &[u8]) -> std::io::Result<()> {
    let mut stream = writer.lock().unwrap_or_else(PoisonError::into_inner);
    let sent = mux::write_message(&mut *stream, conn, message);
    if sent.is_err() {
        // Half a frame may be out: nothing after it could be understood.
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    sent
}

/// The runtime's answer to our registration.
fn answered(message: Message) -> Result<(), NriError> {
    match message {
        Message::Response { body, .. } => match body.status {
            Some(status) if status.code != code::OK => Err(NriError::Refused(status.message)),
            _ => Ok(()),
        },
        Message::Malformed { .. } => Err(NriError::Protocol("malformed response")),
        Message::Request { .. } | Message::Ignored => Ok(()),
    }
}
