//! How great the terminal is: whoever types sees all of it.

use pythond_protocol::lane::TerminalEvent;
use pythond_protocol::verbs::attach::TerminalSize;

use super::{Terminals, tell_all};

impl Terminals {
    /// The smallest of those who type decides.
    pub(super) fn settle_size(&mut self) {
        let sizes = self.attached.iter().filter_map(|attached| {
            let how = attached.how.as_ref()?;
            how.size.filter(|_| !how.read_only)
        });
        let smallest = sizes.reduce(|one, other| TerminalSize {
            rows: one.rows.min(other.rows),
            cols: one.cols.min(other.cols),
        });
        if let Some(size) = smallest {
            self.resize(size);
        }
    }

    /// Sets the size for those who did not say theirs.
    pub(crate) fn resize_unsized(&mut self, size: TerminalSize) {
        let mut asked = false;
        for how in self.attached.iter_mut().filter_map(|it| it.how.as_mut()) {
            if !how.screen && !how.read_only {
                how.size = Some(size);
                asked = true;
            }
        }
        if asked {
            self.settle_size();
        } else if self.attached.is_empty() {
            self.resize(size);
        }
    }

    pub(super) fn resize(&mut self, size: TerminalSize) {
        let size = TerminalSize {
            rows: size.rows.max(1),
            cols: size.cols.max(1),
        };
        if size == self.size {
            return;
        }
        self.size = size;
        // What was written before belongs to the old size.
        self.read_leader();
        if let Some(leader) = &self.leader {
            leader.resize(size);
        }
        if let Some(screen) = &mut self.screen {
            screen.resize(size);
        }
        self.shared.terminal.note_resized();
        tell_all(
            &mut self.attached,
            &mut self.cut_off,
            &TerminalEvent::Resized(size),
            b"",
        );
    }
}
