//! The leading end of the terminal and everybody who is attached to it. Lives
//! on the I/O thread.

mod size;
mod typing;

use std::collections::VecDeque;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use pythond_protocol::lane::{Attach, Message, TerminalCommand, TerminalEvent};
use pythond_protocol::outcome::CellKind;
use pythond_protocol::verbs::attach::TerminalSize;
use pythond_protocol::{ErrorCode, ErrorReply};

use super::input::Inputs;
use super::paste::OpenPaste;
use super::screen::Screen;
use super::{DEFAULT_SIZE, Leader, Person};
use crate::lane_socket::{LaneLost, LaneSocket};
use crate::shared::Shared;

/// With so much waiting for a terminal that reads on, programs that write to it
/// wait, as they do for every terminal.
const FAR_BEHIND: usize = 256 << 10;
/// A terminal that takes less than this in such a span is not waited for.
const SLOWEST: u64 = 4 << 10;
const SPAN: Duration = Duration::from_secs(5);
/// Bytes that may wait for a terminal that is not waited for; with more it is
/// cut off.
const BACKLOG: usize = 1 << 20;
/// What was typed and not taken, in bytes. More is lost, so that the interrupt key
/// is always seen; a paste of some megabytes is not: a prompt takes a tenth of one
/// in a second.
const MOST_TYPED: usize = 16 << 20;
/// Ctrl-C.
const INTERRUPT_KEY: u8 = 3;
/// How much is read from the terminal at once.
const PIECE: usize = 64 << 10;
/// Terminals that may be attached at once.
const MOST_ATTACHED: usize = 256;

/// One terminal.
#[derive(Debug)]
struct Attached {
    id: u64,
    lane: LaneSocket,
    /// How; none before its first message.
    how: Option<Attach>,
    /// It was told that it is attached, and is told all that follows.
    told: bool,
    /// When it was last looked how much it takes, and how much it had taken by
    /// then; none while it is near enough.
    looked: Option<(Instant, u64)>,
    /// It is not waited for.
    stalled: bool,
    /// Some of its input was taken, and it was not told.
    took: bool,
}

impl Attached {
    /// It may type.
    fn types(&self) -> bool {
        self.how.as_ref().is_some_and(|how| !how.read_only)
    }

    /// What its input is counted by.
    fn key(&self) -> Option<&str> {
        let input = self.how.as_ref()?.input.as_ref()?;
        Some(input.key.as_str())
    }

    /// True while what is written has to wait for this terminal.
    fn holds_back(&mut self) -> bool {
        if self.lane.waiting() <= FAR_BEHIND {
            self.looked = None;
            self.stalled = false;
            return false;
        }
        let taken = self.lane.taken();
        let (since, before) = *self.looked.get_or_insert_with(|| (Instant::now(), taken));
        if since.elapsed() >= SPAN {
            self.stalled = taken - before < SLOWEST;
            self.looked = Some((Instant::now(), taken));
        }
        !self.stalled
    }
}

/// What the I/O thread has to do about what somebody typed or asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// The main thread has to look at its prompt.
    Nudge,
    /// The person's running cell is to be interrupted.
    Interrupt(u64),
    /// A terminal is gone.
    Left(u64),
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Terminals {
    shared: &'static Shared,
    leader: Option<Leader>,
    /// None before anybody was attached.
    screen: Option<Screen>,
    size: TerminalSize,
    attached: Vec<Attached>,
    next_id: u64,
    /// What was typed and the terminal has not taken.
    typed: VecDeque<u8>,
    /// In all that was typed.
    paste: OpenPaste,
    /// How much was, by whom.
    inputs: Inputs,
    /// Somebody who is attached is far behind, and reads on.
    held_back: bool,
    /// Those who were cut off and whose going is still to be seen to.
    cut_off: Vec<u64>,
}

impl Terminals {
    pub(crate) fn new(shared: &'static Shared, leader: Option<Leader>) -> Self {
        Self {
            shared,
            leader,
            screen: None,
            size: DEFAULT_SIZE,
            attached: Vec::new(),
            next_id: 0,
            typed: VecDeque::new(),
            paste: OpenPaste::default(),
            inputs: Inputs::default(),
            held_back: false,
            cut_off: Vec::new(),
        }
    }

    /// Takes a lane whose first message is still to come.
    pub(crate) fn adopt(&mut self, lane: LaneSocket) -> u64 {
        self.next_id += 1;
        self.attached.push(Attached {
            id: self.next_id,
            lane,
            how: None,
            told: false,
            looked: None,
            stalled: false,
            took: false,
        });
        self.next_id
    }

    /// Another daemon is there.
    pub(crate) fn another_daemon(&mut self) {
        self.inputs.another_daemon();
    }

    /// What to wait for: descriptor and events; none is the terminal itself.
    pub(crate) fn watched(&self, mut add: impl FnMut(i32, i16, Option<u64>)) {
        // Also before anybody is attached: whoever writes to a descriptor that is
        // not theirs must not wait for ever.
        if let Some(leader) = &self.leader {
            let write = if self.typed.is_empty() {
                0
            } else {
                libc::POLLOUT
            };
            let read = if self.held_back { 0 } else { libc::POLLIN };
            add(leader.as_fd().as_raw_fd(), read | write, None);
        }
        for attached in &self.attached {
            let read = if attached.lane.may_read() {
                libc::POLLIN
            } else {
                0
            };
            let write = if attached.lane.wants_to_write() {
                libc::POLLOUT
            } else {
                0
            };
            let descriptor = attached.lane.as_fd().as_raw_fd();
            add(descriptor, read | write, Some(attached.id));
        }
    }

    /// Looks again who is far behind. True while somebody is.
    pub(crate) fn look_who_is_behind(&mut self) -> bool {
        let mut behind = false;
        for attached in &mut self.attached {
            behind |= attached.holds_back();
        }
        // Only the person's own programs wait for their terminals; agents never.
        self.held_back = behind && self.shared.terminal.is_persons_turn();
        self.held_back
    }

    /// True while programs wait for somebody who is attached.
    pub(crate) fn holds_back(&self) -> bool {
        self.held_back
    }

    /// Passes on what programs wrote, and what was typed.
    pub(crate) fn serve_leader(&mut self) {
        self.write_typed();
        self.read_leader();
    }

    fn read_leader(&mut self) {
        if self.look_who_is_behind() {
            return;
        }
        let Some(leader) = &self.leader else { return };
        let mut bytes = vec![0; PIECE];
        // A program that writes without end leaves time for the rest.
        for _ in 0..4 {
            match rustix::io::read(leader.as_fd(), &mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    let written = &bytes[..count];
                    if let Some(screen) = &mut self.screen {
                        screen.feed(written);
                    }
                    tell_all(
                        &mut self.attached,
                        &mut self.cut_off,
                        &TerminalEvent::Output,
                        written,
                    );
                    if count < 4096 {
                        break;
                    }
                }
            }
        }
        self.count();
    }

    /// Writes what waits for room, making room by reading.
    pub(crate) fn write_next(&mut self) {
        // Each turn takes at least what a terminal holds.
        for _ in 0..1024 {
            if self.shared.terminal.write_next() || self.held_back {
                return;
            }
            self.read_leader();
        }
    }

    /// Serves one who is attached; what else is to be done.
    pub(crate) fn serve(&mut self, id: u64, events: i16) -> Vec<Arrived> {
        let mut arrived = Vec::new();
        if self.serve_lane(id, events, &mut arrived).is_err() {
            arrived.extend(self.remove(|attached| attached.id == id));
        }
        self.count();
        arrived
    }

    /// Those who were cut off since this was asked last.
    pub(crate) fn take_cut_off(&mut self) -> Vec<Arrived> {
        if self.cut_off.is_empty() {
            return Vec::new();
        }
        self.see_off(None);
        self.count();
        let gone = std::mem::take(&mut self.cut_off);
        gone.into_iter().map(Arrived::Left).collect()
    }

    /// Takes out those who are gone.
    fn remove(&mut self, gone: impl Fn(&Attached) -> bool) -> Vec<Arrived> {
        let (left, stay) = self.attached.drain(..).partition(gone);
        self.attached = stay;
        let mut arrived = Vec::new();
        for attached in left {
            let typed = attached.types().then(|| attached.key()).flatten();
            self.see_off(typed);
            arrived.push(Arrived::Left(attached.id));
        }
        arrived
    }

    /// Somebody is gone; who typed with a key may come back with it.
    fn see_off(&mut self, key: Option<&str>) {
        self.settle_size();
        if self.attached.iter().any(Attached::types) {
            return;
        }
        self.let_output_go_on();
        match key {
            Some(key) => self.inputs.left(key),
            None => self.abandon(),
        }
    }

    /// Fails for one who is gone, or is to go.
    fn of(&mut self, id: u64) -> Result<&mut Attached, LaneLost> {
        let mut all = self.attached.iter_mut();
        all.find(|attached| attached.id == id)
            .ok_or(LaneLost::Closed)
    }

    fn serve_lane(
        &mut self,
        id: u64,
        events: i16,
        arrived: &mut Vec<Arrived>,
    ) -> Result<(), LaneLost> {
        let attached = self.of(id)?;
        if events & libc::POLLOUT != 0 {
            attached.lane.flush()?;
        }
        if events & !libc::POLLOUT != 0 {
            attached.lane.receive()?;
        }
        while let Some(message) = self.of(id)?.lane.next::<TerminalCommand>()? {
            self.obey(id, message, arrived)?;
        }
        self.tell_taken(id)
    }

    fn obey(
        &mut self,
        id: u64,
        message: Message<TerminalCommand>,
        arrived: &mut Vec<Arrived>,
    ) -> Result<(), LaneLost> {
        match message.header {
            TerminalCommand::Attach(how) => {
                self.attach(id, how, arrived)?;
                arrived.push(Arrived::Nudge);
            }
            TerminalCommand::Input => self.input(id, &message.body, arrived)?,
            TerminalCommand::Resize(size) => {
                if let Some(how) = &mut self.of(id)?.how {
                    how.size = Some(size);
                }
                self.settle_size();
                arrived.push(Arrived::Nudge);
            }
        }
        Ok(())
    }

    fn attach(&mut self, id: u64, how: Attach, arrived: &mut Vec<Arrived>) -> Result<(), LaneLost> {
        let Some(leader) = &self.leader else {
            let error = ErrorReply::new(
                ErrorCode::NotAvailable,
                "the system gave this session no terminal",
            );
            let hint = "see /proc/sys/kernel/pty/max, then create the session again";
            let error = error.with_hint(hint);
            return self.refuse(id, error);
        };
        if self.attached.len() > MOST_ATTACHED {
            let message = format!("{MOST_ATTACHED} terminals are attached to this session already");
            return self.refuse(id, ErrorReply::new(ErrorCode::Limit, message));
        }
        if self.screen.is_none() {
            leader.resize(self.size);
            self.screen = Some(Screen::new(self.size));
        }
        let person = Person {
            author: how.author.clone(),
            term: how.term.clone(),
            colorterm: how.colorterm.clone(),
        };
        let (screen, read_only) = (how.screen, how.read_only);
        let input = how.input.clone();
        if let Some(input) = &input {
            arrived.extend(self.take_place_of(id, &input.key));
        }
        if !read_only
            && self
                .inputs
                .came(input.as_ref().map(|input| input.key.as_str()))
        {
            self.abandon();
        }
        let known = input.as_ref().map(|input| self.begin_input(input));
        // What was written until now is part of the screen that it gets.
        self.read_leader();
        self.of(id)?.how = Some(how);
        self.settle_size();
        self.count();
        let model = self.screen.as_ref();
        let first = match (model, screen) {
            (Some(model), true) => model.restore(),
            (Some(model), false) => model.recent(),
            (None, _) => Vec::new(),
        };
        let event = TerminalEvent::Attached {
            terminal: id,
            size: self.size,
            attached: self.shared.terminal.attached(),
            held_by: self.shared.held_by(),
            input: known,
        };
        let attached = self.of(id)?;
        attached.lane.send(&event, &first)?;
        attached.told = true;
        if read_only {
            // Somebody has to be the first, also one who only looks.
            self.shared.terminal.want_at_all(person);
        } else {
            self.shared.terminal.want(person);
        }
        self.say_what_runs();
        let resumed = known.is_some_and(|known| known.resumed);
        if input.is_some_and(|input| input.resume) && !resumed {
            self.shared
                .terminal
                .say("[pythond] the connection broke, and what was typed last may be missing");
        }
        if screen && !read_only && !resumed && self.shared.terminal.attached() == 1 {
            self.shared.terminal.say(
                "[pythond] Ctrl-] detaches, Ctrl-\\ lets agents wait, exit() ends the session",
            );
        }
        Ok(())
    }

    /// A terminal comes back on a connection of its own. What is still on its way
    /// by the one before is not taken any more: it is sent again.
    fn take_place_of(&mut self, id: u64, key: &str) -> Vec<Arrived> {
        let before = |it: &Attached| it.id != id && it.key() == Some(key);
        for attached in self.attached.iter_mut().filter(|it| before(it)) {
            // One that is gone need not be told.
            let _ = attached.lane.send(&TerminalEvent::Reattached, b"");
        }
        self.remove(before)
    }

    /// Somebody who comes while an agent's cell runs finds no prompt yet.
    fn say_what_runs(&self) {
        let shared = self.shared;
        let Some(cell) = shared.running_main() else {
            return;
        };
        if shared
            .state_of(cell)
            .is_none_or(|(kind, _)| kind == CellKind::Human)
        {
            return;
        }
        shared.terminal.begin_beside_agent();
        shared.terminal.say(&format!(
            "[pythond] cell {cell} runs; the prompt comes when it has ended"
        ));
    }

    fn refuse(&mut self, id: u64, error: ErrorReply) -> Result<(), LaneLost> {
        let lane = &mut self.of(id)?.lane;
        lane.send(&TerminalEvent::Refused { error }, b"")?;
        Err(LaneLost::Closed)
    }

    /// Agents' cells wait, or not any more.
    pub(crate) fn tell_held(&mut self, held_by: Option<String>, waiting: u64) {
        tell_all(
            &mut self.attached,
            &mut self.cut_off,
            &TerminalEvent::Held { held_by, waiting },
            b"",
        );
        self.count();
    }

    fn count(&self) {
        let attached = self.attached.iter().filter(|it| it.how.is_some());
        self.shared.terminal.set_attached(attached.count());
    }
}

/// Tells everybody; who does not read is cut off.
fn tell_all(all: &mut Vec<Attached>, gone: &mut Vec<u64>, event: &TerminalEvent, body: &[u8]) {
    all.retain_mut(|attached| {
        if !attached.told {
            return true;
        }
        let stays = attached.lane.send(event, body).is_ok() && attached.lane.waiting() <= BACKLOG;
        if !stays {
            gone.push(attached.id);
        }
        stays
    });
}
