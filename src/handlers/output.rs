//! A cell's output as handlers read it from the host, piece by piece.

use pythond_protocol::lane::{HostEvent, OUTPUT_CHUNK};
use pythond_protocol::output_log::{self, Stream};
use pythond_protocol::{CellId, ErrorReply};

use crate::session::{OutputRange, Question, SessionHandle};

/// A piece of output.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Whole records.
    pub(super) records: Vec<u8>,
    /// Where they begin.
    pub(super) offset: u64,
    /// Where the next would begin.
    pub(super) next: u64,
    /// Bytes before `offset` that are not kept.
    pub(super) missing: u64,
    /// The cell has ended and this was the last.
    pub(super) ended: bool,
}

/// Reads a cell's output from some offset on.
pub(super) struct OutputReader<'a> {
    session: &'a SessionHandle,
    cell: CellId,
    stream: Option<Stream>,
    position: u64,
    before: u64,
}

impl<'a> OutputReader<'a> {
    pub(super) fn new(
        session: &'a SessionHandle,
        cell: CellId,
        stream: Option<Stream>,
        position: u64,
    ) -> Self {
        Self {
            session,
            cell,
            stream,
            position,
            before: position,
        }
    }

    /// Where the cell is.
    pub(super) fn session(&self) -> &'a SessionHandle {
        self.session
    }

    /// Whose output.
    pub(super) fn cell(&self) -> CellId {
        self.cell
    }

    /// Where the next piece begins.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Where the last piece began.
    pub(super) fn before(&self) -> u64 {
        self.before
    }

    /// The next piece, as soon as there is one or the cell has ended.
    ///
    /// # Errors
    /// What the host says, or that it is gone.
    ///
    /// # Cancel safety
    /// A piece that is on its way is asked for again.
    pub(super) async fn follow(&mut self) -> Result<Chunk, ErrorReply> {
        let range = self.range(true, OUTPUT_CHUNK);
        let answer = self.session.ask_and_wait(Question::Read(range)).await?;
        self.take(answer)
    }

    /// The next piece of what is there.
    ///
    /// # Errors
    /// What the host says, or that it is gone.
    pub(super) async fn read(&mut self) -> Result<Chunk, ErrorReply> {
        self.read_at_most(OUTPUT_CHUNK).await
    }

    /// The same with a limit of raw bytes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) async fn read_at_most(&mut self, most: usize) -> Result<Chunk, ErrorReply> {
        let range = self.range(false, most.min(OUTPUT_CHUNK));
        let answer = self.session.ask_with_body(Question::Read(range)).await?;
        self.take(answer)
    }

    fn range(&self, follow: bool, most: usize) -> OutputRange {
        OutputRange {
            cell: self.cell,
            stream: self.stream,
            offset: self.position,
            most: u32::try_from(most).unwrap_or(u32::MAX),
            follow,
        }
    }

    fn take(&mut self, answer: (HostEvent, Vec<u8>)) -> Result<Chunk, ErrorReply> {
        let (
            HostEvent::OutputChunk {
                offset,
                next,
                missing,
                ended,
                ..
            },
            records,
        ) = answer
        else {
            return Err(super::ask::unexpected());
        };
        let mut chunk = Chunk {
            records,
            offset,
            next,
            missing,
            ended,
        };
        if !ended {
            chunk.leave_half_a_character();
        }
        self.before = self.position;
        self.position = chunk.next;
        Ok(chunk)
    }

    /// What follows in the beginning of the log that came with the cell's end.
    pub(super) fn take_inline(&mut self, log: &[u8]) -> Option<Chunk> {
        let mut records = Vec::new();
        let (mut at, position) = (0, self.position);
        for record in output_log::records(log) {
            let Ok((stream, data)) = record else { break };
            let end = at + data.len() as u64;
            if end > position {
                let skip = usize::try_from(position.saturating_sub(at)).unwrap_or(0);
                output_log::append(&mut records, stream, &data[skip..]);
            }
            at = end;
        }
        if at <= position {
            return None;
        }
        (self.before, self.position) = (position, at);
        Some(Chunk {
            records,
            offset: position,
            next: at,
            missing: 0,
            ended: false,
        })
    }

    /// What follows in the end of the log that a dead session left, of which
    /// `lost` bytes are missing at the beginning.
    pub(super) fn rest_of_dead(&mut self, log: &[u8], lost: u64) -> Option<Chunk> {
        let position = self.position;
        let missing = lost.saturating_sub(position);
        self.position = position.saturating_sub(lost);
        let rest = self.take_inline(log);
        self.position += lost;
        if rest.is_none() && missing == 0 {
            return None;
        }
        let offset = position.max(lost);
        Some(Chunk {
            records: rest.map(|rest| rest.records).unwrap_or_default(),
            offset,
            next: self.position.max(offset),
            missing,
            ended: true,
        })
    }
}

impl Chunk {
    /// Leaves a character that the piece cuts through to the next one.
    fn leave_half_a_character(&mut self) {
        let Some(half) = self.half_a_character() else {
            return;
        };
        // Alone it would come back for ever.
        let all = usize::try_from(self.next - self.offset).unwrap_or(usize::MAX);
        if half >= all || all < OUTPUT_CHUNK {
            return;
        }
        let mut records = Vec::with_capacity(self.records.len());
        let mut parts: Vec<_> = output_log::records(&self.records).flatten().collect();
        if let Some((_, data)) = parts.last_mut() {
            *data = &data[..data.len() - half];
        }
        for (stream, data) in parts.into_iter().filter(|(_, data)| !data.is_empty()) {
            output_log::append(&mut records, stream, data);
        }
        self.records = records;
        self.next -= half as u64;
    }

    /// Bytes of an unfinished character at the end.
    fn half_a_character(&self) -> Option<usize> {
        let (_, data) = output_log::records(&self.records).flatten().last()?;
        let tail = &data[data.len().saturating_sub(4)..];
        (1..tail.len().min(3) + 1).find(|count| {
            let end = &tail[tail.len() - count..];
            let starts = end[0] & 0xc0 == 0xc0;
            starts && std::str::from_utf8(end).is_err_and(|error| error.error_len().is_none())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &[u8], fill: usize) -> Chunk {
        let mut records = Vec::new();
        let data = [vec![b'x'; fill], text.to_vec()].concat();
        output_log::append(&mut records, Stream::Stdout, &data);
        Chunk {
            next: data.len() as u64,
            records,
            offset: 0,
            missing: 0,
            ended: false,
        }
    }

    #[test]
    fn a_character_is_not_cut_by_the_end_of_a_piece() {
        for (text, left) in [
            (&b"ab"[..], 0),
            (b"a\xc3", 1),
            (b"\xe2\x82", 2),
            (b"\xf0\x9f\x98", 3),
        ] {
            let mut full = chunk(text, OUTPUT_CHUNK);
            full.leave_half_a_character();
            assert_eq!(
                full.next,
                (OUTPUT_CHUNK + text.len() - left) as u64,
                "{text:?}"
            );
            let merged = output_log::merged(&full.records).unwrap();
            assert_eq!(merged.len() as u64, full.next);
        }
        // What is all there is goes out as it is.
        let mut short = chunk(b"\xc3", 0);
        short.leave_half_a_character();
        assert_eq!(short.next, 1);
    }
}
