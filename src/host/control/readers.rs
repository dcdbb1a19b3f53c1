//! Readers of output, some of which wait for it.

use std::time::Instant;

use pythond_protocol::lane::HostEvent;
use pythond_protocol::output_log::Stream;
use pythond_protocol::{CellId, ErrorCode, ErrorReply};

use super::{Control, unknown_cell};
use crate::cell_log::Piece;
use crate::shared::Outgoing;

/// Readers that may wait for output at once.
const MOST_FOLLOWERS: usize = 1024;

/// A reader that waits for output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Follower {
    pub(super) request: u64,
    pub(super) cell: CellId,
    pub(super) stream: Option<Stream>,
    pub(super) offset: u64,
    pub(super) most: usize,
    /// It is not answered before, so that what flows comes in fair pieces.
    pub(super) not_before: Option<Instant>,
}

impl Control {
    pub(super) fn read(&mut self, follower: Follower, follow: bool) -> Option<Outgoing> {
        if self.shared.is_expected(follower.cell) {
            // The main thread has not read it yet.
            self.shared.outputs.open(follower.cell.as_u64());
        }
        if !follow {
            let Follower {
                cell,
                stream,
                offset,
                most,
                ..
            } = follower;
            let ended = self.shared.has_ended(cell);
            let outputs = &self.shared.outputs;
            let piece = outputs.read(cell.as_u64(), stream, offset, most);
            return Some(chunk(&follower, piece, ended));
        }
        if self.followers.len() >= MOST_FOLLOWERS {
            let error = ErrorReply::new(
                ErrorCode::Limit,
                format!("{MOST_FOLLOWERS} readers wait for output of this session already"),
            );
            let request = follower.request;
            return Some((HostEvent::Refused { request, error }, Vec::new()));
        }
        // In this order: an end that comes now is told.
        self.shared.watch_ends(true);
        let Follower {
            cell,
            stream,
            offset,
            most,
            ..
        } = follower;
        let outputs = &self.shared.outputs;
        let not_before = outputs.next_piece_at(cell.as_u64(), stream, offset, most);
        let follower = Follower {
            not_before,
            ..follower
        };
        let answer = self.follow(follower);
        if answer.is_none() {
            self.followers.push(follower);
        }
        self.watch();
        answer
    }

    /// The answer to a reader, if there is something to say.
    pub(super) fn follow(&self, follower: Follower) -> Option<Outgoing> {
        let Follower {
            cell,
            stream,
            offset,
            most,
            ..
        } = follower;
        let ended = self.shared.has_ended(cell);
        if !ended && follower.not_before.is_some() {
            return None;
        }
        let outputs = &self.shared.outputs;
        let piece = outputs.follow(cell.as_u64(), stream, offset, most);
        let nothing = |piece: &Piece| piece.records.is_empty() && piece.missing == 0;
        if !ended && piece.as_ref().is_some_and(nothing) {
            return None;
        }
        Some(chunk(&follower, piece, ended))
    }
}

/// A piece as it is sent; none means that the cell is not remembered.
fn chunk(follower: &Follower, piece: Option<Piece>, ended: bool) -> Outgoing {
    let request = follower.request;
    let Some(piece) = piece else {
        return (unknown_cell(request, follower.cell), Vec::new());
    };
    let event = HostEvent::OutputChunk {
        request,
        offset: piece.offset,
        next: piece.next,
        missing: piece.missing,
        ended: ended && piece.next >= piece.total,
    };
    (event, piece.records)
}
