//! What a person types: read off the terminal, kept until the session has it. Also
//! while there is no daemon.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use pythond_protocol::lane::InputKey;
use pythond_protocol::verbs::attach::AttachReply;
use pythond_transport::Report;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;
use signal_hook::consts::{SIGCONT, SIGINT, SIGTSTP, SIGWINCH};

use super::attached::End;
use super::late::Late;
use super::submission::new_key;
use crate::failure::Failure;
use crate::render::Render;
use crate::terminal::{Kept, Keys, Output, Room, Signals, Typed};
use crate::watch::Watch;

/// Ctrl-C.
const INTERRUPT_KEY: u8 = 3;

/// The keyboard, over all connections.
pub(super) struct Typing {
    /// Names it to the session.
    key: String,
    keys: Keys,
    kept: Kept,
    read_only: bool,
    /// The daemon does not know how to count.
    refused: bool,
    /// The person knows that there is no session to type to.
    waits: bool,
}

/// A key of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OurKey {
    /// Ctrl-].
    Detach,
    /// Ctrl-\.
    Hold,
}

impl Typing {
    /// A keyboard that no session knows.
    pub(super) fn new(read_only: bool) -> Result<Self, Report> {
        Ok(Self {
            key: new_key("a key for what is typed")?,
            keys: Keys::default(),
            kept: Kept::default(),
            read_only,
            refused: false,
            waits: false,
        })
    }

    /// What the session is to know it by; none if nothing is typed.
    pub(super) fn input(&self) -> Option<InputKey> {
        (!self.read_only && !self.refused).then(|| InputKey {
            key: self.key.clone(),
            resume: self.kept.len() > 0,
        })
    }

    /// True once if it was refused to count what is typed: the daemon is of an
    /// older version, and is to be asked as such.
    pub(super) fn is_refused(&mut self, report: &Report) -> bool {
        let refused = report.code == "usage" && report.message.contains("--input-key");
        refused && !std::mem::replace(&mut self.refused, true)
    }

    /// A session is there.
    pub(super) fn attached(&mut self, reply: &AttachReply) {
        self.kept.attached(reply);
        self.waits = false;
    }

    /// What was typed and not acknowledged.
    pub(super) fn kept(&mut self) -> &mut Kept {
        &mut self.kept
    }

    /// Whether the keyboard is to be read now; else for how long not, where that
    /// is known.
    pub(super) fn may_read(&self) -> Result<(), Duration> {
        match self.kept.room() {
            Room::None(left) => Err(left),
            Room::Enough | Room::Lost => Ok(()),
        }
    }

    /// Reads what was typed; the keys among it that are ours. What follows Ctrl-]
    /// is for nobody.
    pub(super) fn read(&mut self) -> Result<Vec<OurKey>, End> {
        let mut bytes = [0; 16 << 10];
        let count = match rustix::io::read(stdin(), &mut bytes[..]) {
            Ok(0) => return Err(End::TerminalGone),
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(Vec::new()),
            Err(_) => return Err(End::TerminalGone),
        };
        // Who knows that nobody is there does not mean the session.
        if self.waits && !self.keys.pasting() && bytes[..count].contains(&INTERRUPT_KEY) {
            return Err(End::Signal(SIGINT));
        }
        let mut ours = Vec::new();
        for typed in self.keys.take(&bytes[..count]) {
            match typed {
                Typed::Detach => {
                    ours.push(OurKey::Detach);
                    break;
                }
                _ if self.read_only => {}
                Typed::Bytes(bytes) => self.kept.add(bytes),
                Typed::Hold => ours.push(OurKey::Hold),
            }
        }
        Ok(ours)
    }
}

/// What is listened to while there is no session: signals that end programs, and
/// the keyboard, whose keys are for the session that comes back.
pub(super) struct Outside<'a> {
    pub(super) signals: &'a Signals,
    /// None while the terminal is not ours.
    pub(super) typing: Option<&'a mut Typing>,
    /// What a person who is told to wait can do instead.
    pub(super) way_out: &'static str,
    /// What the person is told if the wait is long.
    pub(super) late: Option<(Late, &'a Render)>,
    /// What ended it.
    pub(super) end: Option<End>,
}

impl<'a> Outside<'a> {
    /// Before the terminal is ours, or with its keyboard.
    pub(super) fn new(signals: &'a Signals, typing: Option<&'a mut Typing>) -> Self {
        let way_out = match typing {
            Some(_) => "; Ctrl-] detaches",
            None => "",
        };
        Self {
            signals,
            typing,
            way_out,
            late: None,
            end: None,
        }
    }
}

impl Watch for Outside<'_> {
    fn wakes(&self) -> Vec<BorrowedFd<'_>> {
        let mut wakes = vec![self.signals.as_fd()];
        // Where there is no room for more it is not listened to.
        let typing = self.typing.as_ref();
        if typing.is_some_and(|typing| typing.may_read().is_ok()) {
            wakes.push(stdin());
        }
        wakes.extend(self.late.as_ref().map(|(late, _)| late.as_fd()));
        wakes
    }

    fn woken(&mut self) -> Result<(), Failure> {
        if let Some(signal) = ending(self.signals) {
            self.end = Some(End::Signal(signal));
            return Err(Failure::Ended);
        }
        if let Some((late, render)) = self.late.take_if(|(late, _)| late.is_due()) {
            let way_out = self.way_out();
            render.note(&format!("{}; still waiting{way_out}", late.words));
        }
        let Some(typing) = &mut self.typing else {
            return Ok(());
        };
        let mut descriptors = [PollFd::from_borrowed_fd(stdin(), PollFlags::IN)];
        if !matches!(poll(&mut descriptors, Some(&Timespec::default())), Ok(1)) {
            return Ok(());
        }
        match typing.read() {
            Err(end) => self.end = Some(end),
            Ok(ours) if ours.contains(&OurKey::Detach) => self.end = Some(End::Detached),
            Ok(ours) if !ours.is_empty() => {
                // Nobody is there who could hold anything.
                let _ = Output::open().write(b"\x07");
            }
            Ok(_) => {}
        }
        match self.end {
            Some(_) => Err(Failure::Ended),
            None => Ok(()),
        }
    }

    fn way_out(&mut self) -> &'static str {
        if let Some(typing) = &mut self.typing {
            typing.waits = true;
        }
        self.way_out
    }
}

/// A signal that came and that ends programs.
pub(super) fn ending(signals: &Signals) -> Option<i32> {
    let mut came = signals.take().into_iter();
    came.find(|signal| ![SIGCONT, SIGTSTP, SIGWINCH].contains(signal))
}
