//! Questions to the host, and how many there may be.

use pythond_protocol::lane::HostCommand;
use pythond_protocol::{ErrorCode, ErrorReply};

use super::link::Link;
use super::{AskReply, MANY_QUESTIONS, MOST_ASKS, MOST_WAITING, Session};
use crate::session::question::Question;

impl Session {
    pub(super) fn question(&mut self, question: Question, reply: AskReply) {
        let question = match question {
            // A cell that is on its way to the host is meant as well.
            Question::Interrupt { cells, soft, .. } if cells.is_empty() => Question::Interrupt {
                cells: self.watch.running(self.board.current()),
                soft,
                unnamed: true,
            },
            question => question,
        };
        if self.asks.len() >= self.many_asks {
            self.forget_left();
        }
        if self.takes_no_more() {
            let name = &self.shared.hosted.spec.session;
            let message = format!("the process of session `{name}` takes no more questions");
            let error = ErrorReply::new(ErrorCode::SessionUnreachable, message)
                .with_hint("it has answered none for long; look at it with `pysh ls`");
            drop(reply.send(Err(error)));
            return;
        }
        self.expect_cell_of_lane();
        let request = self.board.next_request();
        self.asks.insert(request, (question.clone(), reply));
        // While the lanes are broken it waits for new ones.
        self.control(&question.into_command(request), b"");
    }

    /// Lets the host know the cell that its main thread may not have read.
    pub(super) fn expect_cell_of_lane(&mut self) {
        let direct = self.board.on_cell_lane();
        if direct != self.expected
            && let Some(cell) = direct
        {
            self.expected = direct;
            self.control(&HostCommand::Expect { cell }, b"");
        }
    }

    /// So much is on its way to a host that takes nothing, most likely because it
    /// is stopped, that questions would only fill the memory.
    pub(super) fn takes_no_more(&self) -> bool {
        match &self.link {
            Link::Up(lanes) => lanes.control.waiting() > MOST_WAITING + self.board.bytes(),
            Link::Recovering(_) => self.asks.len() >= MOST_ASKS,
        }
    }

    /// Forgets the questions of those who do not wait any more, here and in the
    /// host.
    pub(super) fn forget_left(&mut self) {
        let left = self.asks.iter().filter(|(_, (_, reply))| reply.is_closed());
        let left: Vec<_> = left.map(|(request, _)| *request).collect();
        for request in left {
            self.asks.remove(&request);
            self.control(&HostCommand::Forget { request }, b"");
        }
        // Many who do wait are not looked through again for each new one.
        self.many_asks = MANY_QUESTIONS.max(2 * self.asks.len());
    }
}
