//! A dockerd played by the test on a socket of its own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::message::{Lines, inspected, listed, started};
use super::{DockerError, DockerOptions, News, follow};
use proptest::prelude::*;

const ID: &str = "6b7a1e3f0c5d49e28a11bb22cc33dd44ee55ff660718293a4b5c6d7e8f901234";

fn inspect(pid: u32) -> String {
    format!(
        r#"{{"Id":"{ID}","Name":"/web","State":{{"Running":true,"Pid":{pid}}},"Config":{{"Labels":{{"lxcfs/inject":"true"}}}}}}"#
    )
}

/// Answers each request with what `answer` says, until the socket's directory is gone.
fn dockerd(
    answer: impl Fn(&str, &mut UnixStream) + Send + Sync + 'static,
) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let answer = std::sync::Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), std::sync::Arc::clone(&answer));
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let path = first.split(' ').nth(1).unwrap().to_owned();
                answer(&path, &mut stream);
            });
        }
    });
    (dir, socket)
}

fn whole(stream: &mut UnixStream, body: &str) {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).unwrap();
}

fn chunked(stream: &mut UnixStream, chunks: &[&[u8]]) {
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    for chunk in chunks {
        let _ = write!(stream, "{:x}\r\n", chunk.len());
        let _ = stream.write_all(chunk);
        let _ = stream.write_all(b"\r\n");
        let _ = stream.flush();
    }
}

fn options() -> DockerOptions {
    DockerOptions {
        deadline: Duration::from_millis(300),
        limit: 64 << 10,
    }
}

/// Follows until the stream ends; what was told, and why it ended.
fn told(socket: &std::path::Path) -> (Vec<String>, Result<(), DockerError>) {
    let mut told = Vec::new();
    let (_keep, stop) = tokio::sync::oneshot::channel();
    let ended = follow(
        socket,
        options(),
        &mut |news| {
            told.push(match news {
                News::Running(found) => format!("running {}", found.len()),
                News::Started(found) => format!("started {} {}", found.name, found.pid),
            });
        },
        stop,
    );
    (told, ended)
}

#[test]
fn what_runs_is_told_first_and_then_every_start() {
    let event = format!(r#"{{"Type":"container","Action":"start","Actor":{{"ID":"{ID}"}}}}"#);
    let (_dir, socket) = dockerd(move |path, stream| match path {
        "/containers/json" => whole(stream, &format!(r#"[{{"Id":"{ID}"}}]"#)),
        path if path.starts_with("/events?filters=") => {
            // One event in two pieces, and one of another kind.
            let text = format!("{event}\n{{\"Type\":\"image\",\"Action\":\"pull\"}}\n");
            let (a, b) = text.as_bytes().split_at(30);
            chunked(stream, &[a, b]);
            std::thread::sleep(Duration::from_millis(100));
        }
        _ => whole(stream, &inspect(77)),
    });
    let (told, ended) = told(&socket);
    assert_eq!(told, ["running 1", "started web 77"]);
    assert!(matches!(ended, Err(DockerError::Http { .. })), "{ended:?}");
}

#[test]
fn stopping_ends_the_wait_for_events() {
    let (_dir, socket) = dockerd(|path, stream| match path {
        "/containers/json" => whole(stream, "[]"),
        _ => {
            chunked(stream, &[b"\n"]);
            std::thread::sleep(Duration::from_secs(60));
        }
    });
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let mut stop = Some(stop);
    let ended = follow(
        &socket,
        options(),
        &mut |news| {
            assert!(matches!(news, News::Running(_)));
            drop(stop.take());
        },
        stopped,
    );
    assert!(ended.is_ok(), "{ended:?}");
}

#[test]
fn an_absent_socket_is_named() {
    let (_keep, stop) = tokio::sync::oneshot::channel();
    let missing = std::path::Path::new("/nowhere/docker.sock");
    let ended = follow(missing, options(), &mut |_| {}, stop);
    let text = ended.unwrap_err().to_string();
    assert!(text.starts_with("/nowhere/docker.sock: "), "{text}");
}

#[test]
fn refusals_silence_and_noise_each_have_their_own_error() {
    let (_dir, socket) = dockerd(|_, stream| {
        stream
            .write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    });
    assert!(matches!(
        told(&socket).1,
        Err(DockerError::Status { status: 403, .. })
    ));
    let (_dir, socket) = dockerd(|_, _| std::thread::sleep(Duration::from_secs(60)));
    assert!(matches!(told(&socket).1, Err(DockerError::Deadline { .. })));
    let (_dir, socket) = dockerd(|_, stream| {
        stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").unwrap();
    });
    assert!(matches!(told(&socket).1, Err(DockerError::Http { .. })));
}

#[test]
fn an_endless_event_is_cut_off() {
    let (_dir, socket) = dockerd(|path, stream| match path {
        "/containers/json" => whole(stream, "[]"),
        _ => {
            let chunk = [b'x'; 4096];
            chunked(stream, &vec![&chunk[..]; 100]);
            std::thread::sleep(Duration::from_secs(60));
        }
    });
    let ended = told(&socket).1.unwrap_err();
    let DockerError::Http { source, .. } = ended else {
        panic!("{ended}")
    };
    assert!(
        source.to_string().contains("longer than the limit"),
        "{source}"
    );
}

#[test]
fn an_endless_list_is_cut_off() {
    let (_dir, socket) = dockerd(|path, stream| match path {
        "/containers/json" => {
            let chunk = [b' '; 4096];
            chunked(stream, &vec![&chunk[..]; 100]);
        }
        _ => chunked(stream, &[b"\n"]),
    });
    assert!(matches!(told(&socket).1, Err(DockerError::Http { .. })));
}

#[test]
fn an_id_that_is_no_id_is_not_put_into_a_path() {
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&asked);
    let (_dir, socket) = dockerd(move |path, stream| {
        seen.lock().unwrap().push(path.to_owned());
        match path {
            "/containers/json" => whole(stream, r#"[{"Id":"../../secrets"},{"Id":""},{}]"#),
            _ => chunked(stream, &[b"\n"]),
        }
    });
    assert_eq!(told(&socket).0, ["running 0"]);
    assert!(
        asked
            .lock()
            .unwrap()
            .iter()
            .all(|path| !path.contains(".."))
    );
}

#[test]
fn answers_are_read_as_dockerd_writes_them() {
    let found = inspected(inspect(42).as_bytes()).unwrap();
    assert_eq!((found.name.as_str(), found.pid), ("web", 42));
    assert_eq!(found.labels["lxcfs/inject"], "true");
    // Without labels dockerd writes null; a stopped container has pid 0.
    let bare =
        format!(r#"{{"Id":"{ID}","State":{{"Running":true,"Pid":1}},"Config":{{"Labels":null}}}}"#);
    assert!(inspected(bare.as_bytes()).unwrap().labels.is_empty());
    let stopped = format!(r#"{{"Id":"{ID}","State":{{"Running":false,"Pid":0}}}}"#);
    assert_eq!(inspected(stopped.as_bytes()), None);
    assert_eq!(listed(b"null"), Vec::<String>::new());
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (inspected(&bytes), listed(&bytes), started(&bytes));
        let mut lines = Lines::new(100);
        let _ = lines.push(&bytes);
    }

    #[test]
    fn lines_come_back_however_they_are_cut(text in "[a-z\n]{0,80}", cut in 1usize..20) {
        let mut lines = Lines::new(1000);
        let whole: Vec<u8> = text.as_bytes().chunks(cut)
            .flat_map(|part| lines.push(part).unwrap()).flatten().collect();
        let end = text.rfind('\n').map_or(0, |at| at + 1);
        prop_assert_eq!(whole, text.as_bytes()[..end].to_vec());
    }
}
