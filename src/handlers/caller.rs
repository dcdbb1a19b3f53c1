//! Who asks, and how events reach them before the reply.

use pythond_protocol::output_log::{self, Stream};
use pythond_protocol::verbs::cell::Text;
use pythond_protocol::verbs::out::StreamEvent;
use pythond_protocol::{CellId, SessionName};
use serde::Serialize;
use tokio::sync::mpsc;

use super::output::Chunk;

/// One request's asker.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Who submits its cells, unless it says another name.
    pub(crate) author: String,
    /// It is a process of this machine, by the daemon's own socket.
    pub(crate) is_local: bool,
    /// What its answers carry.
    pub(crate) tag: Option<String>,
    /// The terminal that its connection is: session, and which there.
    pub(crate) terminal: Option<(SessionName, u64)>,
    /// Texts for its connection, which takes them as fast as they are read.
    pub(crate) outgoing: mpsc::Sender<String>,
}

impl Caller {
    /// Sends an event; waits until the connection takes it.
    pub(super) async fn event(&self, event: &impl Serialize) {
        let text = serde_json::to_string(event).expect("events have text keys only");
        // One who went away needs no events.
        let _ = self.outgoing.send(self.tagged(text)).await;
    }

    /// Sends an event as it came from elsewhere.
    pub(crate) async fn pass_on(&self, text: &str) {
        // One who went away needs no events.
        let _ = self.outgoing.send(self.tagged(text.to_owned())).await;
    }

    /// Sends a piece of output, of one stream or both.
    pub(super) async fn output(&self, cell_id: CellId, only: Option<Stream>, chunk: &Chunk) {
        if chunk.missing > 0 {
            let event = StreamEvent::Gap {
                cell_id,
                offset: chunk.offset - chunk.missing,
                missing: chunk.missing,
            };
            self.event(&event).await;
        }
        let mut offset = chunk.offset;
        for (stream, data) in joined(&chunk.records, only) {
            let length = data.len() as u64;
            let event = StreamEvent::Output {
                cell_id,
                stream: stream as u8,
                offset,
                data: Text(data),
            };
            self.event(&event).await;
            offset += length;
        }
    }

    /// An answer with the asker's tag.
    pub(crate) fn tagged(&self, text: String) -> String {
        match (&self.tag, text.strip_prefix('{')) {
            (Some(tag), Some(rest)) => {
                let tag = serde_json::Value::from(tag.as_str());
                let comma = if rest == "}" { "" } else { "," };
                format!("{{\"tag\":{tag}{comma}{rest}")
            }
            _ => text,
        }
    }
}

/// The records of one stream or both, those joined that follow one another: a
/// record may end inside a character.
fn joined(records: &[u8], only: Option<Stream>) -> Vec<(Stream, Vec<u8>)> {
    let mut joined: Vec<(Stream, Vec<u8>)> = Vec::new();
    for (stream, data) in output_log::records(records).flatten() {
        if only.is_some_and(|only| only != stream) {
            continue;
        }
        match joined.last_mut() {
            Some((last, before)) if *last == stream => before.extend_from_slice(data),
            _ => joined.push((stream, data.to_vec())),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_one_stream_are_one_piece() {
        let mut records = Vec::new();
        for (stream, data) in [
            (Stream::Stdout, &b"\xc3"[..]),
            (Stream::Stdout, b"\xa9"),
            (Stream::Stderr, b"e"),
            (Stream::Stdout, b"o"),
        ] {
            output_log::append(&mut records, stream, data);
        }
        let found = joined(&records, None);
        let expected = [
            (Stream::Stdout, "é"),
            (Stream::Stderr, "e"),
            (Stream::Stdout, "o"),
        ];
        let expected = expected.map(|(stream, text)| (stream, text.as_bytes().to_vec()));
        assert_eq!(found, expected);
        assert_eq!(joined(&records, Some(Stream::Stderr)).len(), 1);
    }

    #[test]
    fn a_tag_is_put_first_and_escaped() {
        let mut caller = Caller {
            is_local: true,
            terminal: None,
            author: String::new(),
            tag: Some("a\"b".to_owned()),
            outgoing: mpsc::channel(1).0,
        };
        assert_eq!(caller.tagged("{}".to_owned()), r#"{"tag":"a\"b"}"#);
        let object = r#"{"ok":true}"#.to_owned();
        assert_eq!(caller.tagged(object.clone()), r#"{"tag":"a\"b","ok":true}"#);
        caller.tag = None;
        assert_eq!(caller.tagged(object.clone()), object);
    }
}
