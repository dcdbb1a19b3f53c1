//! Readers of output, some of which wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use pythond_protocol::lane::HostEvent;
use pythond_protocol::output_log::Stream;
use pythond_protocol::{CellId, ErrorCode, ErrorReply};

use super::{Control, unknown_cell};
use crate::cell_log::{Found, Piece, Wanted};
use crate::disk::{Job, STALLED};
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

/// A reader of what has to be fetched from files.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) follower: Follower,
    wanted: Wanted,
    pub(super) answered: Arc<AtomicBool>,
    /// It is answered without the files then.
    pub(super) deadline: Instant,
}

/// What a reader gets.
pub(super) enum Reading {
    Answer(Outgoing),
    /// There is nothing to say yet.
    Later,
    /// The thread of the disk answers.
    Fetched,
}

impl Control {
    pub(super) fn read(&mut self, follower: Follower, follow: bool) -> Option<Outgoing> {
        if self.shared.is_expected(follower.cell) {
            // The main thread has not read it yet.
            self.shared.outputs.open(follower.cell.as_u64());
        }
        if !follow {
            return match self.look_for(follower, false) {
                Reading::Answer(answer) => Some(answer),
                Reading::Later | Reading::Fetched => None,
            };
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
        let reading = self.follow(follower);
        let answer = match reading {
            Reading::Answer(answer) => Some(answer),
            Reading::Later => {
                self.followers.push(follower);
                None
            }
            Reading::Fetched => None,
        };
        self.watch();
        answer
    }

    /// The answer to a reader, if there is something to say.
    pub(super) fn follow(&mut self, follower: Follower) -> Reading {
        let ended = self.shared.has_ended(follower.cell);
        if !ended && follower.not_before.is_some() {
            return Reading::Later;
        }
        self.look_for(follower, true)
    }

    fn look_for(&mut self, follower: Follower, follow: bool) -> Reading {
        let shared = self.shared;
        let wanted = Wanted {
            cell: follower.cell.as_u64(),
            stream: follower.stream,
            offset: follower.offset,
            most: follower.most,
            follow,
        };
        // In this order: what a cell wrote last is told with its end.
        let ended = shared.has_ended(follower.cell);
        let files = !shared.disk.is_stalled();
        let piece = match shared.outputs.read(&wanted, files) {
            None => None,
            Some(Found::Here(piece)) => Some(piece),
            Some(Found::InFiles(_)) => {
                self.fetch(follower, wanted);
                return Reading::Fetched;
            }
        };
        if follow && !ended && piece.as_ref().is_some_and(Piece::is_nothing) {
            return Reading::Later;
        }
        Reading::Answer(chunk(&follower, piece, ended))
    }

    /// Lets the thread of the disk answer.
    fn fetch(&mut self, follower: Follower, wanted: Wanted) {
        let answered = Arc::new(AtomicBool::new(false));
        self.fetches.push(Fetch {
            follower,
            wanted,
            answered: Arc::clone(&answered),
            deadline: Instant::now() + STALLED,
        });
        let shared = self.shared;
        shared.disk.hand(Job::Read(Box::new(move || {
            if answered.load(SeqCst) {
                return;
            }
            let ended = shared.has_ended(follower.cell);
            let piece = shared.outputs.read_files(wanted);
            if !answered.swap(true, SeqCst) {
                let (event, body) = chunk(&follower, piece, ended);
                shared.send(event, body);
            }
        })));
    }

    /// Answers those whose files do not come.
    pub(super) fn answer_without_files(&mut self, now: Instant) -> Vec<Outgoing> {
        let shared = self.shared;
        let mut outgoing = Vec::new();
        self.fetches.retain(|fetch| {
            if fetch.answered.load(SeqCst) {
                return false;
            }
            let late = fetch.deadline <= now && !fetch.answered.swap(true, SeqCst);
            if late {
                let ended = shared.has_ended(fetch.follower.cell);
                let piece = shared.outputs.without_files(&fetch.wanted);
                outgoing.push(chunk(&fetch.follower, piece, ended));
            }
            !late
        });
        outgoing
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
