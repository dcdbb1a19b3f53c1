//! The structured reply of a cell with much output, made while it is sent: no
//! process holds more of it than a piece.

use std::sync::Arc;

use pythond_protocol::lane::OUTPUT_CHUNK;
use pythond_protocol::output_log::{self, Stream};
use pythond_protocol::verbs::cell::CellReply;
use pythond_protocol::{CellId, ErrorReply};
use tokio::sync::mpsc;

use super::output::OutputReader;
use super::{Context, Reply};
use crate::session::SessionHandle;

/// From how many bytes of output on a reply is made in pieces.
pub(super) const LARGE: u64 = 4 << 20;
/// Pieces that wait for their connection.
const AHEAD: usize = 2;
/// Bytes that base64 takes at once: whole groups of three.
const BASE64_PIECE: usize = 3 << 16;

/// Whoever reads the reply is gone.
struct Gone;

/// A reply whose output is still with the host.
pub(super) struct LargeReply {
    pub(super) session: SessionHandle,
    pub(super) cell: CellId,
    /// Everything but the output and the shown value.
    pub(super) reply: CellReply,
    /// Where in stdout the shown value stands.
    pub(super) result: Option<(u64, u64)>,
    /// Bytes of output when the cell ended.
    pub(super) total: u64,
}

impl LargeReply {
    /// Begins; the pieces follow the reply's text.
    pub(super) fn start(self, context: &Arc<Context>) -> Reply {
        let ok = self.reply.ok;
        let (sender, pieces) = mpsc::channel(AHEAD);
        context.hosts.tracker.spawn(async move {
            // Nobody is there to be told.
            let _ = self.write(&sender).await;
        });
        Reply {
            text: "{\"stdout\":".to_owned(),
            ok,
            pieces: Some(pieces),
        }
    }

    async fn write(mut self, sender: &mpsc::Sender<String>) -> Result<(), Gone> {
        let survey = self.survey().await;
        let say = |text: &str| {
            let text = text.to_owned();
            async move { sender.send(text).await.map_err(|_| Gone) }
        };
        let mut sent = 0;
        sent += self
            .stream(sender, Stream::Stdout, survey.stdout_is_text)
            .await?;
        say(",\"stderr\":").await?;
        sent += self
            .stream(sender, Stream::Stderr, survey.stderr_is_text)
            .await?;
        say(",\"result\":").await?;
        match self.result {
            Some((start, length)) => {
                let end = start.saturating_add(length);
                self.text(sender, Stream::Stdout, start, end).await?;
            }
            None => say("null").await?,
        }
        self.reply.order = survey.order;
        self.reply.truncated = self.total.saturating_sub(sent);
        say(&self.rest()).await
    }

    /// The fields that are not sent yet, and the end of the object.
    fn rest(&self) -> String {
        let mut rest = serde_json::to_value(&self.reply).expect("replies have text keys only");
        if let Some(fields) = rest.as_object_mut() {
            for sent in ["stdout", "stderr", "result"] {
                fields.remove(sent);
            }
        }
        let text = rest.to_string();
        format!(",{}", text.strip_prefix('{').unwrap_or("}"))
    }

    fn reader(&self, stream: Option<Stream>, from: u64) -> OutputReader<'_> {
        OutputReader::new(&self.session, self.cell, stream, from)
    }

    /// Reads everything once, for what must be known before the first byte.
    async fn survey(&self) -> Survey {
        let mut survey = Survey {
            stdout_is_text: true,
            stderr_is_text: true,
            order: Vec::new(),
        };
        let mut carried = [Vec::new(), Vec::new()];
        let mut reader = self.reader(None, 0);
        while reader.position() < self.total {
            let Ok(records) = next(&mut reader, self.total).await else {
                break;
            };
            for (stream, data) in output_log::records(&records).flatten() {
                match survey.order.last_mut() {
                    Some((last, bytes)) if *last == stream as u8 => *bytes += data.len() as u64,
                    _ => survey.order.push((stream as u8, data.len() as u64)),
                }
                let (is_text, carried) = match stream {
                    Stream::Stdout => (&mut survey.stdout_is_text, &mut carried[0]),
                    Stream::Stderr => (&mut survey.stderr_is_text, &mut carried[1]),
                };
                if *is_text {
                    carried.extend_from_slice(data);
                    *is_text = keep_half_a_character(carried);
                }
            }
        }
        survey.stdout_is_text &= carried[0].is_empty();
        survey.stderr_is_text &= carried[1].is_empty();
        if matches!(survey.order.as_slice(), [] | [_] | [(1, _), (2, _)]) {
            survey.order.clear();
        }
        survey
    }

    /// One stream in the form of [`pythond_protocol::verbs::cell::Text`];
    /// returns how many bytes that were.
    async fn stream(
        &self,
        sender: &mpsc::Sender<String>,
        stream: Stream,
        is_text: bool,
    ) -> Result<u64, Gone> {
        if is_text {
            return self.text(sender, stream, 0, u64::MAX).await;
        }
        let say = |text: String| async { sender.send(text).await.map_err(|_| Gone) };
        say("{\"text\":".to_owned()).await?;
        self.text(sender, stream, 0, u64::MAX).await?;
        say(",\"data_b64\":\"".to_owned()).await?;
        let mut reader = self.reader(Some(stream), 0);
        let (mut carried, mut sent) = (Vec::new(), 0);
        while let Ok(records) = next(&mut reader, u64::MAX).await {
            carried.append(&mut bytes(&records));
            while carried.len() >= BASE64_PIECE {
                let rest = carried.split_off(BASE64_PIECE);
                say(pythond_protocol::verbs::cell::base64(&carried)).await?;
                sent += carried.len() as u64;
                carried = rest;
            }
        }
        sent += carried.len() as u64;
        say(pythond_protocol::verbs::cell::base64(&carried)).await?;
        say("\"}".to_owned()).await?;
        Ok(sent)
    }

    /// Bytes of one stream as a JSON string; what is no UTF-8 as U+FFFD.
    async fn text(
        &self,
        sender: &mpsc::Sender<String>,
        stream: Stream,
        from: u64,
        to: u64,
    ) -> Result<u64, Gone> {
        let say = |text: String| async { sender.send(text).await.map_err(|_| Gone) };
        say("\"".to_owned()).await?;
        let mut reader = self.reader(Some(stream), from);
        let (mut carried, mut sent) = (Vec::new(), 0);
        while reader.position() < to {
            let Ok(records) = next(&mut reader, to).await else {
                break;
            };
            let mut data = bytes(&records);
            sent += data.len() as u64;
            carried.append(&mut data);
            let whole = carried.len() - half_a_character(&carried);
            let rest = carried.split_off(whole);
            say(escaped(&carried)).await?;
            carried = rest;
        }
        say(escaped(&carried)).await?;
        say("\"".to_owned()).await?;
        Ok(sent)
    }
}

/// What has to be known before the first byte is sent.
struct Survey {
    stdout_is_text: bool,
    stderr_is_text: bool,
    order: Vec<(u8, u64)>,
}

/// The next records; an error also at the end of what is there.
async fn next(reader: &mut OutputReader<'_>, to: u64) -> Result<Vec<u8>, ErrorReply> {
    let room = usize::try_from(to.saturating_sub(reader.position())).unwrap_or(usize::MAX);
    let chunk = reader.read_at_most(room.min(OUTPUT_CHUNK)).await?;
    if chunk.next <= reader.before() {
        return Err(super::ask::unexpected());
    }
    Ok(chunk.records)
}

fn bytes(records: &[u8]) -> Vec<u8> {
    output_log::merged(records).unwrap_or_default()
}

/// The inside of a JSON string.
fn escaped(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// Bytes of an unfinished character at the end.
fn half_a_character(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let starts = tail.iter().rposition(|byte| byte & 0xc0 == 0xc0);
    let Some(at) = starts else { return 0 };
    match std::str::from_utf8(&tail[at..]) {
        Err(error) if error.error_len().is_none() => tail.len() - at,
        _ => 0,
    }
}

/// Leaves only an unfinished character. False if the bytes are no UTF-8.
fn keep_half_a_character(bytes: &mut Vec<u8>) -> bool {
    let whole = bytes.len() - half_a_character(bytes);
    let is_text = std::str::from_utf8(&bytes[..whole]).is_ok();
    bytes.drain(..whole);
    is_text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_character_is_found_at_the_end_only() {
        for (bytes, half) in [
            (&b"ab"[..], 0),
            (b"a\xc3", 1),
            (b"a\xc3\xa9", 0),
            (b"\xe2\x82", 2),
            (b"x\xf0\x9f\x98", 3),
            (b"\xff", 0),
            (b"", 0),
        ] {
            assert_eq!(half_a_character(bytes), half, "{bytes:?}");
        }
    }

    #[test]
    fn pieces_of_a_string_are_escaped_as_the_whole() {
        let text = "a\"b\\\n\u{1}é";
        let whole = serde_json::to_string(text).unwrap();
        assert_eq!(format!("\"{}\"", escaped(text.as_bytes())), whole);
    }
}
