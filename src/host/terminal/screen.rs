//! What is on the terminal, for whoever attaches: a model of the screen, and
//! the last bytes that were written.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pythond_protocol::verbs::attach::TerminalSize;

/// The last bytes that are kept as they were written.
const RING: usize = 64 << 10;
/// The greatest screen that is modelled; a terminal may say it is larger.
const MOST_ROWS: u16 = 1000;
const MOST_COLS: u16 = 2000;

/// The screen and the ring.
pub(crate) struct Screen {
    model: vt100::Parser,
    size: TerminalSize,
    ring: VecDeque<u8>,
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Screen");
        shown.field("size", &self.size).finish_non_exhaustive()
    }
}

fn model(size: TerminalSize) -> vt100::Parser {
    let (rows, cols) = dimensions(size);
    vt100::Parser::new(rows, cols, 0)
}

fn dimensions(size: TerminalSize) -> (NonZeroU16, NonZeroU16) {
    let length = |length| NonZeroU16::new(length).unwrap_or(NonZeroU16::MIN);
    (length(size.rows), length(size.cols))
}

fn modelled(size: TerminalSize) -> TerminalSize {
    TerminalSize {
        rows: size.rows.clamp(1, MOST_ROWS),
        // A wide character needs two columns.
        cols: size.cols.clamp(2, MOST_COLS),
    }
}

impl Screen {
    pub(crate) fn new(size: TerminalSize) -> Self {
        let size = modelled(size);
        Self {
            model: model(size),
            size,
            ring: VecDeque::new(),
        }
    }

    /// Takes what was written to the terminal.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(RING)..];
        let surplus = (self.ring.len() + kept.len()).saturating_sub(RING);
        self.ring.drain(..surplus.min(self.ring.len()));
        self.ring.extend(kept);
        self.change(|model| model.process(bytes));
    }

    pub(crate) fn resize(&mut self, size: TerminalSize) {
        self.size = modelled(size);
        let (rows, cols) = dimensions(self.size);
        self.change(|model| model.screen_mut().set_size(rows, cols));
    }

    /// Bytes come from programs of any kind: if the model fails over them, it
    /// starts anew, and only what it showed is lost.
    fn change(&mut self, change: impl FnOnce(&mut vt100::Parser)) {
        let changed = catch_unwind(AssertUnwindSafe(|| change(&mut self.model)));
        if changed.is_err() {
            self.model = model(self.size);
        }
    }

    /// What brings a terminal, whatever is on it, to this screen.
    pub(crate) fn restore(&self) -> Vec<u8> {
        let screen = self.model.screen();
        let mut bytes = b"\x1b[!p\x1b[0m".to_vec();
        bytes.extend(if screen.alternate_screen() {
            &b"\x1b[?1049h"[..]
        } else {
            &b"\x1b[?1049l"[..]
        });
        bytes.extend(b"\x1b[H\x1b[2J");
        let state = catch_unwind(AssertUnwindSafe(|| screen.state_formatted()));
        bytes.extend(state.unwrap_or_default().into_bytes());
        bytes
    }

    /// The last bytes as they were written, from a whole character on.
    pub(crate) fn recent(&self) -> Vec<u8> {
        let whole = self.ring.iter().position(|byte| byte & 0xc0 != 0x80);
        self.ring.iter().skip(whole.unwrap_or(0)).copied().collect()
    }
}
