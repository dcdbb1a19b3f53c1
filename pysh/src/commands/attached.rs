//! The loop of an attached terminal: keys to the session, its bytes to the
//! terminal, signals beside them. One thread that never waits for one of them
//! alone, so that no key waits for output and no output for a key.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use pythond_protocol::SessionPath;
use pythond_protocol::verbs::attach::{AttachEvent, TerminalEnd, TerminalSize};
use pythond_transport::{Attachment, ClientError, Incoming, TransportError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};

use super::typing::{OurKey, Typing};
use crate::terminal::escapes::ScreenFilter;
use crate::terminal::{Output, Signals, TerminalGuard, terminal_size};

/// The signals that mean something to an attached terminal.
pub(super) const SIGNALS: [i32; 7] = [SIGWINCH, SIGCONT, SIGTSTP, SIGTERM, SIGHUP, SIGINT, SIGQUIT];

/// Bytes that wait for the terminal until no more are taken from the daemon.
const OUTPUT_AHEAD: usize = 64 << 10;
/// Bytes that wait for the daemon until it is given no more of what was typed.
const INPUT_AHEAD: usize = 256 << 10;
/// Most typed bytes in one message.
const INPUT_PIECE: usize = 64 << 10;
/// Messages that are taken until the other ends are looked at.
const MESSAGES_AT_ONCE: usize = 64;

/// Why the loop ended.
#[derive(Debug)]
pub(super) enum End {
    /// Ctrl-].
    Detached,
    /// This signal.
    Signal(i32),
    /// The terminal is gone.
    TerminalGone,
    /// The daemon said why.
    Closed(TerminalEnd, String),
    /// The connection ended without a word.
    Lost(TransportError),
    /// After a stop: the session is to be attached anew.
    Continued,
}

/// What lasts over several connections.
pub(super) struct Person<'a> {
    pub(super) session: &'a SessionPath,
    pub(super) signals: &'a Signals,
    pub(super) read_only: bool,
    pub(super) unfiltered: bool,
}

/// One connection of an attached terminal.
pub(super) struct Attached<'a> {
    person: &'a Person<'a>,
    attachment: Attachment,
    guard: &'a mut TerminalGuard,
    typing: &'a mut Typing,
    output: Output,
    filter: ScreenFilter,
    size: TerminalSize,
    /// Agents' cells wait, or were asked to.
    held: bool,
    /// It was done with our key.
    held_here: bool,
    /// Messages may be there that were read off the socket already, of which
    /// poll knows nothing.
    more: bool,
    /// The daemon takes no more; what it has said last is still to be read.
    broken: Option<TransportError>,
}

impl<'a> Attached<'a> {
    /// Begins with the terminal in raw mode and a session that is attached.
    pub(super) fn new(
        person: &'a Person<'a>,
        attachment: Attachment,
        guard: &'a mut TerminalGuard,
        typing: &'a mut Typing,
        size: TerminalSize,
        held: bool,
    ) -> Self {
        Self {
            person,
            attachment,
            guard,
            typing,
            output: Output::open(),
            filter: ScreenFilter::new(),
            size,
            held,
            held_here: false,
            more: true,
            broken: None,
        }
    }

    /// Agents' cells wait for somebody else: what was held here ends with the
    /// attachment.
    pub(super) fn held(&self) -> bool {
        self.held && !self.held_here
    }

    /// Goes on until something ends it. The terminal is what it was then, but for
    /// its keys if the daemon is lost, which may come back.
    pub(super) fn run(&mut self) -> End {
        // The window may have changed while the daemon was asked.
        let end = match self.resized() {
            Err(end) => end,
            Ok(()) => loop {
                if let Err(end) = self.turn() {
                    break end;
                }
            },
        };
        if matches!(end, End::Closed(..) | End::Lost(_)) {
            // The last words of the session are worth waiting for a little.
            let _ = self.output.drain(Duration::from_millis(300));
        }
        if self.output.discard() || self.person.unfiltered {
            self.guard.torn();
        }
        if matches!(end, End::Lost(_)) {
            self.guard.pause();
        } else {
            self.guard.leave();
        }
        end
    }

    /// Gives the connection back, for its orderly end.
    pub(super) fn into_attachment(self) -> Attachment {
        self.attachment
    }

    /// Waits, and does what there is to do.
    fn turn(&mut self) -> Result<(), End> {
        let (mut typed, mut came) = (false, false);
        let mut signalled = false;
        let at_once = self.more && self.output.waiting() < OUTPUT_AHEAD;
        self.send_typed();
        let may_read = self.typing.may_read();
        // While nothing is taken from the daemon, nothing is heard of it.
        let beat = match self.broken {
            None if !at_once && self.output.waiting() < OUTPUT_AHEAD => self.attachment.beat(),
            _ => Ok(None),
        };
        let beat = beat.map_err(End::Lost)?;
        {
            let standard_input = stdin();
            let mut descriptors = vec![PollFd::new(self.person.signals, PollFlags::IN)];
            let mut watch = |wanted: bool, fd, flags| {
                wanted.then(|| {
                    descriptors.push(PollFd::from_borrowed_fd(fd, flags));
                    descriptors.len() - 1
                })
            };
            let input = watch(may_read.is_ok(), standard_input, PollFlags::IN);
            let mut flags = PollFlags::empty();
            if self.output.waiting() < OUTPUT_AHEAD {
                flags |= PollFlags::IN;
            }
            if self.attachment.unsent() > 0 && self.broken.is_none() {
                flags |= PollFlags::OUT;
            }
            let daemon = watch(!flags.is_empty(), self.attachment.as_fd(), flags);
            watch(
                self.output.waiting() > 0,
                self.output.as_fd(),
                PollFlags::OUT,
            );
            let beat = beat.map(|next| next.saturating_duration_since(Instant::now()));
            let limit = match at_once {
                true => Some(Duration::ZERO),
                false => may_read.err().into_iter().chain(beat).min(),
            };
            let limit: Option<Timespec> = limit.and_then(|limit| limit.try_into().ok());
            match poll(&mut descriptors, limit.as_ref()) {
                Ok(_) => {
                    let ready = |at: Option<usize>| {
                        at.is_some_and(|at| !descriptors[at].revents().is_empty())
                    };
                    signalled = ready(Some(0));
                    typed = ready(input);
                    came = ready(daemon);
                }
                Err(Errno::INTR) => {}
                Err(_) => return Err(End::TerminalGone),
            }
        }
        if signalled {
            self.signals()?;
        }
        if typed {
            self.typed()?;
        }
        if came || at_once {
            if self.broken.is_none() {
                self.sent(|attachment| attachment.flush());
            }
            self.came()?;
        }
        self.output.flush().map_err(|_| End::TerminalGone)
    }

    fn signals(&mut self) -> Result<(), End> {
        for signal in self.person.signals.take() {
            match signal {
                SIGWINCH => self.resized()?,
                SIGTSTP => {
                    // As the terminal's own stop would: the shell finds its
                    // terminal as it was.
                    if self.output.discard() {
                        self.guard.torn();
                    }
                    self.guard.leave();
                    let _ = rustix::process::kill_process(
                        rustix::process::getpid(),
                        rustix::process::Signal::STOP,
                    );
                    return Err(End::Continued);
                }
                SIGCONT => return Err(End::Continued),
                signal => return Err(End::Signal(signal)),
            }
        }
        Ok(())
    }

    fn resized(&mut self) -> Result<(), End> {
        let size = terminal_size();
        if size != self.size && !self.person.read_only {
            self.size = size;
            self.sent(|attachment| match attachment.send_resize(size) {
                Err(ClientError::Transport(error)) => Err(error),
                _ => Ok(()),
            });
        }
        Ok(())
    }

    /// Sends something. If that fails, the daemon may have said why.
    fn sent(&mut self, send: impl FnOnce(&mut Attachment) -> Result<(), TransportError>) {
        if self.broken.is_none() {
            self.broken = send(&mut self.attachment).err();
        }
    }

    fn typed(&mut self) -> Result<(), End> {
        for key in self.typing.read()? {
            self.send_typed();
            match key {
                OurKey::Detach => return Err(End::Detached),
                OurKey::Hold => {
                    self.held = !self.held;
                    let held = self.held;
                    self.held_here = held;
                    self.sent(|attachment| match attachment.send_hold(held) {
                        Err(ClientError::Transport(error)) => Err(error),
                        _ => Ok(()),
                    });
                }
            }
        }
        Ok(())
    }

    /// Sends what was typed, as far as the daemon takes it.
    fn send_typed(&mut self) {
        while self.broken.is_none() && self.attachment.unsent() < INPUT_AHEAD {
            let Some(piece) = self.typing.kept().next(INPUT_PIECE) else {
                return;
            };
            self.sent(|attachment| attachment.send_typed(&piece));
        }
    }

    fn came(&mut self) -> Result<(), End> {
        self.more = true;
        for _ in 0..MESSAGES_AT_ONCE {
            if self.output.waiting() >= OUTPUT_AHEAD {
                return Ok(());
            }
            let incoming = match self.attachment.take() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => {
                    self.more = false;
                    return Ok(());
                }
                Err(error) => return Err(End::Lost(error)),
            };
            match incoming {
                Incoming::Bytes(bytes) => self.show(&bytes)?,
                Incoming::Event(AttachEvent::TerminalClosed { reason, message }) => {
                    return Err(End::Closed(reason, message));
                }
                Incoming::Event(AttachEvent::Held { held, .. }) | Incoming::Held(Some(held)) => {
                    self.held = held
                }
                Incoming::Event(AttachEvent::InputTaken { taken }) => {
                    self.typing.kept().acknowledged(taken);
                }
                Incoming::Held(None) => {
                    self.held = !self.held;
                    self.output.write(b"\x07").map_err(|_| End::TerminalGone)?;
                }
                Incoming::Event(AttachEvent::TerminalResized { .. }) | Incoming::Other => {}
                Incoming::Closed => {
                    let lost = self.broken.take().unwrap_or(TransportError::Closed);
                    return Err(End::Lost(lost));
                }
            }
        }
        Ok(())
    }

    fn show(&mut self, bytes: &[u8]) -> Result<(), End> {
        // Parsed in any case: the way back depends on it.
        let passed = self.filter.filter(bytes);
        self.guard.remember(self.filter.modes());
        let shown = if self.person.unfiltered {
            bytes
        } else {
            &passed
        };
        self.output.write(shown).map_err(|_| End::TerminalGone)
    }
}
