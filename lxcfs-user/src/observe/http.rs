//! As much HTTP/1.1 as a probe, a scraper and our own commands speak: a bounded request
//! head in, one response out, then close. Pure; [`super::listener`] moves the bytes.

/// Longest request head that is read.
pub const HEAD_LIMIT: usize = 8 * 1024;

/// A request: there are no bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD` or `PUT`.
    pub method: Method,
    /// Path without the query, e.g. `/metrics`.
    pub path: String,
    /// What follows the question mark, if anything.
    pub query: Option<String>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Tell.
    Get,
    /// Tell whether and how much.
    Head,
    /// Change; only over the control socket.
    Put,
}

/// A response, always the last on its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Content type.
    pub content_type: &'static str,
    /// Body.
    pub body: String,
}

impl Response {
    /// Plain text; a newline is appended.
    #[must_use]
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into() + "\n",
        }
    }

    /// The bytes to send; `head` leaves the body out.
    #[must_use]
    pub fn to_bytes(&self, head: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Error",
        };
        let allow = if self.status == 405 {
            "Allow: GET, HEAD\r\n"
        } else {
            ""
        };
        let mut bytes = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len()
        )
        .into_bytes();
        if !head {
            bytes.extend_from_slice(self.body.as_bytes());
        }
        bytes
    }
}

/// The request at the start of `bytes`; `None` while its head is not complete.
///
/// # Errors
/// The response to give to a request that is not one, or not one of ours.
pub fn parse(bytes: &[u8]) -> Result<Option<Request>, Response> {
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .or_else(|| bytes.windows(2).position(|window| window == b"\n\n"));
    let Some(end) = end else {
        return if bytes.len() >= HEAD_LIMIT {
            Err(Response::text(431, "request head too long"))
        } else {
            Ok(None)
        };
    };
    let bad = |why: &str| Response::text(400, why);
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_error| bad("not UTF-8"))?;
    let line = head.lines().next().unwrap_or_default();
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad("malformed request line"));
    };
    if !version.starts_with("HTTP/1.") {
        return Err(bad("HTTP/1.0 and 1.1 only"));
    }
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        _ => return Err(Response::text(405, "GET and HEAD only")),
    };
    if !target.starts_with('/') {
        return Err(bad("the target must be a path"));
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    Ok(Some(Request {
        method,
        path: path.to_owned(),
        query,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Request {
        parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn requests_of_curl_kubelet_and_a_person_are_understood() {
        let request = parsed("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
        assert_eq!(
            (request.method, request.path.as_str()),
            (Method::Get, "/metrics")
        );
        assert_eq!(parsed("GET / HTTP/1.0\n\n").path, "/");
        let request = parsed("PUT /log-level?debug HTTP/1.1\r\n\r\n");
        assert_eq!(request.method, Method::Put);
        assert_eq!(request.query.as_deref(), Some("debug"));
    }

    #[test]
    fn an_unfinished_head_waits_up_to_the_limit() {
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: x\r\n"), Ok(None));
        assert_eq!(parse(&[b'a'; HEAD_LIMIT]).unwrap_err().status, 431);
    }

    #[test]
    fn anything_else_gets_a_reason() {
        for (text, status) in [
            ("POST / HTTP/1.1\r\n\r\n", 405),
            ("DELETE / HTTP/1.1\r\n\r\n", 405),
            ("GET http://x/ HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/2\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\n\r\n", 400),
            ("hello\r\n\r\n", 400),
            ("\r\n\r\n", 400),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().status, status, "{text}");
        }
    }

    #[test]
    fn head_has_the_length_and_not_the_body() {
        let response = Response::text(200, "alive");
        let bytes = String::from_utf8(response.to_bytes(true)).unwrap();
        assert!(bytes.contains("Content-Length: 6\r\n") && bytes.ends_with("\r\n\r\n"));
        assert!(response.to_bytes(false).ends_with(b"alive\n"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
