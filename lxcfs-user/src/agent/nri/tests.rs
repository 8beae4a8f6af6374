//! A runtime played by the test at the other end of a socket pair.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prost::Message as _;

use super::ttrpc::{Assembler, Message, Request, Response};
use super::{NriError, Plugin, Session, SessionOptions, api, mux, ttrpc};

/// Remembers every call; delays and panics on request.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
    slow: Duration,
    panics: bool,
}

impl Recorder {
    fn note(&self, what: String) {
        self.calls.lock().unwrap().push(what);
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Plugin for Recorder {
    fn configured(&self, runtime: &api::ConfigureRequest) {
        self.note(format!("configured {}", runtime.runtime_name));
    }

    fn synchronize(&self, pods: Vec<api::PodSandbox>, containers: Vec<api::Container>) {
        self.note(format!("synchronize {} {}", pods.len(), containers.len()));
    }

    fn create(&self, pod: &api::PodSandbox, container: &api::Container) -> Vec<api::Mount> {
        std::thread::sleep(self.slow);
        assert!(!self.panics, "asked to panic");
        self.note(format!("create {}/{}", pod.name, container.name));
        vec![api::Mount {
            destination: "/proc/meminfo".into(),
            ..api::Mount::default()
        }]
    }

    fn start(&self, _pod: &api::PodSandbox, container: &api::Container) {
        std::thread::sleep(self.slow);
        self.note(format!("start {} {}", container.name, container.pid));
    }

    fn gave_up(&self, reason: &'static str) {
        self.note(format!("gave up {reason}"));
    }
}

struct Runtime {
    socket: UnixStream,
    answers: Assembler,
    calls: Assembler,
    next_stream: u32,
    session: JoinHandle<Result<(), NriError>>,
}

fn options() -> SessionOptions {
    SessionOptions {
        bound: Duration::from_millis(200),
        concurrency: 4,
        registration: Duration::from_millis(300),
        ..SessionOptions::default()
    }
}

impl Runtime {
    fn new(plugin: &Arc<Recorder>) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        // Generous: only a plugin that never answers runs into it.
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let plugin: Arc<dyn Plugin> = Arc::clone(plugin) as Arc<dyn Plugin>;
        let session = Session::over(theirs, plugin, options()).unwrap();
        Self {
            socket,
            answers: Assembler::default(),
            calls: Assembler::default(),
            next_stream: 1,
            session: std::thread::spawn(move || session.run()),
        }
    }

    /// Waits for the registration and accepts it.
    fn register(&mut self) -> api::RegisterPluginRequest {
        loop {
            let frame = mux::read_frame(&mut self.socket).unwrap().unwrap();
            assert_eq!(frame.conn, mux::RUNTIME_CONN);
            if let Some(message) = self.calls.push(&frame.payload).unwrap().pop() {
                let Message::Request { stream, body } = message else {
                    panic!("{message:?}")
                };
                assert_eq!(body.method, "RegisterPlugin");
                let response = ttrpc::response(stream, &Response::of(&api::Empty {}));
                mux::write_message(&mut self.socket, mux::RUNTIME_CONN, &response).unwrap();
                return api::RegisterPluginRequest::decode(body.payload.as_slice()).unwrap();
            }
        }
    }

    fn send(&mut self, method: &str, message: &impl prost::Message) -> u32 {
        self.send_raw(api::PLUGIN_SERVICE, method, message.encode_to_vec())
    }

    fn send_raw(&mut self, service: &str, method: &str, payload: Vec<u8>) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        let request = Request {
            service: service.into(),
            method: method.into(),
            payload,
            timeout_nano: 0,
        };
        let bytes = ttrpc::request(stream, &request);
        mux::write_message(&mut self.socket, mux::PLUGIN_CONN, &bytes).unwrap();
        stream
    }

    fn answer(&mut self) -> (u32, Response) {
        loop {
            let frame = mux::read_frame(&mut self.socket)
                .unwrap()
                .expect("session ended");
            if let Some(Message::Response { stream, body }) =
                self.answers.push(&frame.payload).unwrap().pop()
            {
                return (stream, body);
            }
        }
    }

    fn call(&mut self, method: &str, message: &impl prost::Message) -> Response {
        let stream = self.send(method, message);
        let (answered, body) = self.answer();
        assert_eq!(answered, stream);
        body
    }

    /// Registers and configures.
    fn ready(plugin: &Arc<Recorder>) -> Self {
        let mut runtime = Self::new(plugin);
        runtime.register();
        let configure = api::ConfigureRequest {
            runtime_name: "containerd".into(),
            ..api::ConfigureRequest::default()
        };
        runtime.call("Configure", &configure);
        runtime
    }

    fn end(self) -> Result<(), NriError> {
        drop(self.socket);
        self.session.join().unwrap()
    }
}

fn request(name: &str, pid: u32) -> api::ContainerRequest {
    api::ContainerRequest {
        pod: Some(api::PodSandbox {
            name: "pod".into(),
            ..api::PodSandbox::default()
        }),
        container: Some(api::Container {
            name: name.into(),
            pid,
            ..api::Container::default()
        }),
    }
}

#[test]
fn a_session_registers_and_subscribes_to_creation_and_start() {
    let plugin = Arc::new(Recorder::default());
    let mut runtime = Runtime::new(&plugin);
    let registered = runtime.register();
    assert_eq!(
        (
            registered.plugin_name.as_str(),
            registered.plugin_idx.as_str()
        ),
        ("lxcfs", "90")
    );
    let answer = runtime.call("Configure", &api::ConfigureRequest::default());
    let answer = api::ConfigureResponse::decode(answer.payload.as_slice()).unwrap();
    assert_eq!(answer.events, 0b10_1000);
    assert!(runtime.end().is_ok());
}

#[test]
fn creation_gets_mounts_and_both_spellings_of_a_start_arrive() {
    let plugin = Arc::new(Recorder::default());
    let mut runtime = Runtime::ready(&plugin);
    let answer = runtime.call("CreateContainer", &request("app", 0));
    let answer = api::CreateContainerResponse::decode(answer.payload.as_slice()).unwrap();
    assert_eq!(
        answer.adjust.unwrap().mounts[0].destination,
        "/proc/meminfo"
    );
    runtime.call("StartContainer", &request("new", 41));
    let old = request("old", 42);
    let change = api::StateChangeEvent {
        event: api::event::START_CONTAINER,
        pod: old.pod,
        container: old.container,
    };
    assert_eq!(runtime.call("StateChange", &change).status, None);
    // Another event of the same kind of message means nothing to us.
    let other = api::StateChangeEvent {
        event: 11,
        ..change
    };
    runtime.call("StateChange", &other);
    runtime.call("PostUpdatePodSandbox", &api::Empty {});
    assert_eq!(
        plugin.calls()[1..],
        ["create pod/app", "start new 41", "start old 42"]
    );
    assert!(runtime.end().is_ok());
}

#[test]
fn a_synchronisation_in_parts_is_delivered_whole_and_bounded() {
    let plugin = Arc::new(Recorder::default());
    let mut runtime = Runtime::ready(&plugin);
    let part = |more, count| api::SynchronizeRequest {
        pods: vec![api::PodSandbox::default()],
        containers: vec![api::Container::default(); count],
        more,
    };
    let answer = runtime.call("Synchronize", &part(true, 3));
    let answer = api::SynchronizeResponse::decode(answer.payload.as_slice()).unwrap();
    assert!(answer.more, "parts must be accepted");
    for _ in 0..4 {
        runtime.call("Synchronize", &part(true, 9_000));
    }
    runtime.call("Synchronize", &part(false, 1));
    let began = Instant::now();
    while plugin.calls().len() < 2 && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(plugin.calls()[1], "synchronize 6 20000");
}

#[test]
fn a_slow_plugin_does_not_hold_up_the_runtime() {
    let plugin = Arc::new(Recorder {
        slow: Duration::from_secs(3600),
        ..Recorder::default()
    });
    let mut runtime = Runtime::ready(&plugin);
    let answer = runtime.call("CreateContainer", &request("app", 0));
    assert_eq!(answer, Response::of(&api::Empty {}));
    assert_eq!(plugin.calls()[1], "gave up deadline");
    // The session lives on.
    assert_eq!(runtime.call("StopContainer", &api::Empty {}).status, None);
}

#[test]
fn more_calls_than_places_are_answered_at_once() {
    let plugin = Arc::new(Recorder {
        slow: Duration::from_secs(3600),
        ..Recorder::default()
    });
    let mut runtime = Runtime::ready(&plugin);
    let sent: Vec<u32> = (0..10)
        .map(|_| runtime.send("StartContainer", &request("app", 1)))
        .collect();
    let mut answered: Vec<u32> = sent.iter().map(|_| runtime.answer().0).collect();
    answered.sort_unstable();
    assert_eq!(answered, sent);
    let gave_up = |why: &str| plugin.calls().iter().filter(|call| *call == why).count();
    assert_eq!(
        (gave_up("gave up overload"), gave_up("gave up deadline")),
        (6, 4)
    );
}

#[test]
fn a_plugin_that_panics_costs_one_answer() {
    let plugin = Arc::new(Recorder {
        panics: true,
        ..Recorder::default()
    });
    let mut runtime = Runtime::ready(&plugin);
    for _ in 0..10 {
        let answer = runtime.call("CreateContainer", &request("app", 0));
        assert_eq!(answer, Response::of(&api::Empty {}));
    }
    // No place was lost: more calls than there are places, and none was overload.
    assert!(!plugin.calls().contains(&"gave up overload".to_owned()));
}

#[test]
fn malformed_requests_are_answered_and_survived() {
    let plugin = Arc::new(Recorder::default());
    let mut runtime = Runtime::ready(&plugin);
    for method in [
        "CreateContainer",
        "StartContainer",
        "StateChange",
        "Synchronize",
        "Configure",
    ] {
        let stream = runtime.send_raw(api::PLUGIN_SERVICE, method, vec![0xff; 40]);
        let (answered, body) = runtime.answer();
        assert_eq!(answered, stream);
        assert_eq!(body.status.unwrap().code, ttrpc::code::INVALID_ARGUMENT);
    }
    runtime.send_raw("some.other.Service", "CreateContainer", Vec::new());
    let status = runtime.answer().1.status.unwrap();
    assert_eq!(status.code, ttrpc::code::UNIMPLEMENTED);
    // A message that is no protobuf at all, and a frame of an unknown connection.
    let mut garbage = ttrpc::request(99, &Request::default());
    garbage.splice(0..4, 5u32.to_be_bytes());
    garbage.extend([0xff; 5]);
    mux::write_message(&mut runtime.socket, mux::PLUGIN_CONN, &garbage).unwrap();
    assert_eq!(runtime.answer().0, 99);
    mux::write_message(&mut runtime.socket, 7, b"whatever").unwrap();
    runtime.call("CreateContainer", &request("app", 0));
    assert_eq!(plugin.calls().last().unwrap(), "create pod/app");
    assert!(runtime.end().is_ok());
}

#[test]
fn an_empty_request_has_no_pod_and_no_container() {
    let plugin = Arc::new(Recorder::default());
    let mut runtime = Runtime::ready(&plugin);
    runtime.call("CreateContainer", &api::Empty {});
    assert_eq!(plugin.calls()[1], "create /");
}

#[test]
fn oversized_frames_and_messages_end_the_session_with_a_reason() {
    use std::io::Write;
    let plugin = Arc::new(Recorder::default());
    for bytes in [
        [[0, 0, 0, 1], [0x7f, 0xff, 0xff, 0xff]].concat(),
        // A frame of ten bytes: a ttrpc header that announces 16 MiB.
        [
            vec![0, 0, 0, 1, 0, 0, 0, 10],
            vec![1, 0, 0, 0, 0, 0, 0, 1, 1, 0],
        ]
        .concat(),
    ] {
        let mut runtime = Runtime::ready(&plugin);
        runtime.socket.write_all(&bytes).unwrap();
        let ended = runtime.session.join().unwrap();
        assert!(matches!(ended, Err(NriError::Protocol(_))), "{ended:?}");
    }
}

#[test]
fn a_refused_registration_says_why() {
    let plugin = Arc::new(Recorder::default());
    let mut runtime = Runtime::new(&plugin);
    let refusal = ttrpc::response(1, &Response::error(2, "invalid plugin name"));
    mux::write_message(&mut runtime.socket, mux::RUNTIME_CONN, &refusal).unwrap();
    let ended = runtime.session.join().unwrap();
    assert!(matches!(ended, Err(NriError::Refused(why)) if why == "invalid plugin name"));
}

#[test]
fn a_runtime_that_says_nothing_is_left() {
    let plugin = Arc::new(Recorder::default());
    let mut silent = Runtime::new(&plugin);
    silent.register();
    let ended = silent.session.join().unwrap();
    assert!(matches!(ended, Err(NriError::NotConfigured)), "{ended:?}");
    let gone = Runtime::new(&plugin);
    assert!(gone.end().is_err());
}

#[test]
fn a_runtime_that_never_reads_cannot_block_the_plugin_for_ever() {
    let plugin = Arc::new(Recorder::default());
    let mut runtime = Runtime::ready(&plugin);
    // Answers pile up unread until the socket's buffer is full; writes then time out.
    runtime
        .socket
        .set_write_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let bytes = ttrpc::request(
        1,
        &Request {
            service: "x".repeat(1000),
            ..Request::default()
        },
    );
    let mut sent = 0;
    while !runtime.session.is_finished() && sent < 1_000_000 {
        if mux::write_message(&mut runtime.socket, mux::PLUGIN_CONN, &bytes).is_err() {
            break;
        }
        sent += 1;
    }
    assert!(runtime.session.join().unwrap().is_err());
}
