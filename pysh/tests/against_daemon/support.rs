//! A daemon that answers each frame as a test says.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

/// Sends a message; false if the client is gone.
pub(crate) type Say<'a> = &'a mut dyn FnMut(&str) -> bool;

/// Listens in a directory of its own until the process ends.
pub(crate) struct ScriptedDaemon {
    _directory: tempfile::TempDir,
    socket: PathBuf,
}

impl ScriptedDaemon {
    /// Answers each frame of each connection by `answer`; an empty answer
    /// cuts the connection.
    pub(crate) fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::speaking(move |frame, say| {
            let answer = answer(frame);
            !answer.is_empty() && say(&answer)
        })
    }

    /// Answers each frame of each connection with as many messages as `answer`
    /// says, and cuts the connection if it returns false.
    pub(crate) fn speaking(answer: impl Fn(&str, Say<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self::listen(answer, true)
    }

    /// As [`Self::speaking`], but messages leave in heaps, so that the client
    /// always has another one to read.
    pub(crate) fn flooding(answer: impl Fn(&str, Say<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self::listen(answer, false)
    }

    fn listen(
        answer: impl Fn(&str, Say<'_>) -> bool + Send + Sync + 'static,
        at_once: bool,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("pythond.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || serve(stream.unwrap(), &*answer, at_once));
            }
        });
        Self {
            _directory: directory,
            socket,
        }
    }
}

/// Where a client is sent to.
pub(crate) trait Daemon {
    /// Variables that lead there.
    fn way(&self) -> Vec<(&'static str, OsString)>;
}

impl Daemon for ScriptedDaemon {
    fn way(&self) -> Vec<(&'static str, OsString)> {
        vec![("PYTHOND_SOCK", self.socket.clone().into())]
    }
}

fn serve(stream: UnixStream, answer: &dyn Fn(&str, Say<'_>) -> bool, at_once: bool) {
    let config = WebSocketConfig::default()
        .max_frame_size(None)
        .max_message_size(None);
    let socket = tungstenite::accept_hdr_with_config(stream, agreed, Some(config)).unwrap();
    converse(socket, answer, at_once);
}

/// Chooses what it speaks.
#[expect(
    clippy::result_large_err,
    reason = "the signature is that of tungstenite"
)]
fn agreed(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let chosen = tungstenite::http::HeaderValue::from_static("pythond.1");
    response
        .headers_mut()
        .insert("sec-websocket-protocol", chosen);
    Ok(response)
}

/// Answers until one of both has enough.
pub(crate) fn converse<S: Read + Write>(
    mut socket: WebSocket<S>,
    answer: &dyn Fn(&str, Say<'_>) -> bool,
    at_once: bool,
) {
    while let Ok(Message::Text(frame)) = socket.read() {
        let mut say = |text: &str| {
            let written = socket.write(Message::text(text));
            written.is_ok() && (!at_once || socket.flush().is_ok())
        };
        if !answer(&without_key(&frame), &mut say) || socket.flush().is_err() {
            return;
        }
    }
}

/// A frame without the key that the client chose by chance, which no test can
/// know.
fn without_key(frame: &str) -> String {
    let (head, rest) = match frame.split_once('\n') {
        Some((head, rest)) => (head, Some(rest)),
        None => (frame, None),
    };
    let words = head.split(' ').filter(|it| !it.starts_with("--id=pysh-"));
    let mut frame = words.collect::<Vec<_>>().join(" ");
    if let Some(rest) = rest {
        frame.push('\n');
        frame.push_str(rest);
    }
    frame
}

/// A reply to `run` with this status and these further fields.
pub(crate) fn cell(status: &str, fields: &str) -> String {
    let ok = status == "done";
    format!(
        r#"{{"session":"work","session_id":"00","gen":1,"cell_id":"00ab00000007","kind":"run","status":"{status}","ok":{ok},"result":null,"started_at":null,"duration_ms":1.5,"output_bytes":1,"truncated":0,"host":"h","changed":[],{fields}}}"#
    )
}

/// The reply after events: no output of its own.
pub(crate) fn streamed(status: &str, fields: &str) -> String {
    cell(
        status,
        &format!(r#""stdout":"","stderr":"","streamed":true,{fields}"#),
    )
}

/// The cell has an id.
pub(crate) const ACCEPTED: &str =
    r#"{"event":"accepted","cell_id":"00ab00000007","status":"running"}"#;

/// A piece of output; `data` is the inside of a JSON string.
pub(crate) fn piece(stream: u8, offset: u64, data: &str) -> String {
    format!(
        r#"{{"event":"output","cell_id":"00ab00000007","stream":{stream},"offset":{offset},"data":"{data}"}}"#
    )
}
