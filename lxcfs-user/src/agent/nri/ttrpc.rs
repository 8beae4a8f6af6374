//! Owns ttrpc's wire form, as far as NRI uses it: unary requests and responses. A message
//! is 4 bytes length, 4 bytes stream number (both big endian), type, flags, and a protobuf.

use prost::Message as _;

use super::NriError;

/// Bytes before each message's body.
pub const HEADER: usize = 10;
/// Largest body, fixed by the protocol.
pub const MAX_MESSAGE: usize = 4 << 20;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// Status codes that are sent or looked at (those of gRPC).
pub mod code {
    /// All is well.
    pub const OK: i32 = 0;
    /// The body cannot be decoded.
    pub const INVALID_ARGUMENT: i32 = 3;
    /// No such method.
    pub const UNIMPLEMENTED: i32 = 12;
}

/// Body of a request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Full name of the service.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Name of the method.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The method's own message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// Time the caller will wait, in nanoseconds; 0 for ever.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
}

/// How a call ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// One of [`code`].
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// Body of a response.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// Absent or code 0 for success.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The method's own message.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

impl Response {
    /// Success with this message.
    pub fn of(message: &impl prost::Message) -> Self {
        Self {
            status: None,
            payload: message.encode_to_vec(),
        }
    }

    /// Failure.
    pub fn error(code: i32, message: impl Into<String>) -> Self {
        Self {
            status: Some(Status {
                code,
                message: message.into(),
            }),
            payload: Vec::new(),
        }
    }
}

/// One whole message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Somebody calls.
    Request {
        /// To be given back in the response.
        stream: u32,
        /// The call.
        body: Request,
    },
    /// Somebody answers.
    Response {
        /// Of the request answered.
        stream: u32,
        /// The answer.
        body: Response,
    },
    /// A body that is not what its header says; only the stream is known.
    Malformed {
        /// Of the request.
        stream: u32,
    },
    /// A message type NRI has no use for.
    Ignored,
}

/// Puts messages together from the bytes of one connection.
#[derive(Debug, Default)]
pub struct Assembler {
    pending: Vec<u8>,
}

impl Assembler {
    /// Takes bytes and gives every message that is whole now.
    ///
    /// # Errors
    /// A message longer than the protocol allows: the stream cannot be followed any more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, NriError> {
        self.pending.extend_from_slice(bytes);
        let mut whole = Vec::new();
        let mut at = 0;
        while let Some(&[a, b, c, d, e, f, g, h, kind, _flags]) =
            self.pending[at..].first_chunk::<HEADER>()
        {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if length > MAX_MESSAGE {
                return Err(NriError::Protocol("ttrpc message longer than 4 MiB"));
            }
            let Some(body) = self.pending.get(at + HEADER..at + HEADER + length) else {
                break;
            };
            let stream = u32::from_be_bytes([e, f, g, h]);
            whole.push(decode(kind, stream, body));
            at += HEADER + length;
        }
        self.pending.drain(..at);
        Ok(whole)
    }
}

fn decode(kind: u8, stream: u32, body: &[u8]) -> Message {
    match kind {
        REQUEST => Request::decode(body).map_or(Message::Malformed { stream }, |body| {
            Message::Request { stream, body }
        }),
        RESPONSE => Response::decode(body).map_or(Message::Malformed { stream }, |body| {
            Message::Response { stream, body }
        }),
        _ => Message::Ignored,
    }
}

fn encode(kind: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&stream.to_be_bytes());
    message.extend_from_slice(&[kind, 0]);
    message.extend_from_slice(body);
    message
}

/// The bytes of a request.
pub fn request(stream: u32, body: &Request) -> Vec<u8> {
    encode(REQUEST, stream, &body.encode_to_vec())
}

/// The bytes of a response.
pub fn response(stream: u32, body: &Response) -> Vec<u8> {
    encode(RESPONSE, stream, &body.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_header_is_the_documented_one() {
        let bytes = request(7, &Request::default());
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 7, 1, 0]);
        let bytes = response(1, &Response::error(12, "no"));
        assert_eq!(bytes[..10], [0, 0, 0, 8, 0, 0, 0, 1, 2, 0]);
    }

    #[test]
    fn an_oversized_message_ends_the_connection_before_it_is_read() {
        let header = [0x00, 0x50, 0, 0, 0, 0, 0, 1, 1, 0];
        assert!(Assembler::default().push(&header).is_err());
    }

    #[test]
    fn a_body_that_is_no_protobuf_names_its_stream() {
        let bytes = encode(REQUEST, 9, &[0xff; 3]);
        assert_eq!(
            Assembler::default().push(&bytes).unwrap(),
            [Message::Malformed { stream: 9 }]
        );
        assert_eq!(
            Assembler::default().push(&encode(3, 9, b"data")).unwrap(),
            [Message::Ignored]
        );
    }

    proptest! {
        #[test]
        fn messages_come_back_however_they_are_cut(
            bodies in proptest::collection::vec("[a-z]{0,40}", 1..6), cut in 1usize..30
        ) {
            let sent: Vec<Message> = bodies.iter().enumerate().map(|(at, text)| Message::Request {
                stream: at as u32 * 2 + 1,
                body: Request { service: text.clone(), method: "M".into(), payload: text.clone().into_bytes(), timeout_nano: 5 },
            }).collect();
            let wire: Vec<u8> = sent.iter().flat_map(|message| match message {
                Message::Request { stream, body } => request(*stream, body),
                _ => Vec::new(),
            }).collect();
            let mut assembler = Assembler::default();
            let mut got = Vec::new();
            for part in wire.chunks(cut) {
                got.extend(assembler.push(part).unwrap());
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Assembler::default().push(&bytes);
        }
    }
}
