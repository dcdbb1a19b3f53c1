//! What is typed, on its way to the terminal.

use pythond_protocol::lane::{InputKey, InputTaken, TerminalEvent};
use rustix::io::Errno;
use rustix::termios::{LocalModes, QueueSelector, SpecialCodeIndex};

use super::{Arrived, INTERRUPT_KEY, MOST_TYPED, Terminals};
use crate::interrupt;
use crate::lane_socket::LaneLost;
use crate::terminal::paste::ABANDONED;

impl Terminals {
    pub(super) fn write_typed(&mut self) {
        let Some(leader) = &self.leader else { return };
        while !self.typed.is_empty() {
            let (front, _) = self.typed.as_slices();
            match rustix::io::write(leader.as_fd(), front) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Nobody is there any more who could end what was typed by half.
    pub(super) fn abandon(&mut self) {
        if self.paste.close() {
            self.typed.extend(ABANDONED);
            self.write_typed();
        }
        self.shared.terminal.note_abandoned();
    }

    /// A key may have stopped the output of the terminal.
    pub(super) fn let_output_go_on(&self) {
        if let Some(follower) = self.shared.terminal.follower() {
            crate::terminal::let_output_go_on(&follower.side);
        }
    }

    /// Tells how much input was taken: it is the session's from now on.
    pub(super) fn tell_taken(&mut self, id: u64) -> Result<(), LaneLost> {
        let attached = self.of(id)?;
        if !std::mem::take(&mut attached.took) {
            return Ok(());
        }
        let key = attached.key().map(str::to_owned);
        let Some(taken) = key.and_then(|key| self.inputs.taken(&key)) else {
            return Ok(());
        };
        let told = TerminalEvent::Taken { taken };
        self.of(id)?.lane.send(&told, b"")
    }

    pub(super) fn begin_input(&mut self, input: &InputKey) -> InputTaken {
        let attached = &self.attached;
        let is_attached = |key: &str| attached.iter().any(|it| it.key() == Some(key));
        self.inputs.begin(input, is_attached)
    }

    /// Somebody typed. A key that means an interrupt is not left to the kernel:
    /// it would hit whatever runs by then, and all children of agents' cells.
    pub(super) fn input(
        &mut self,
        id: u64,
        bytes: &[u8],
        arrived: &mut Vec<Arrived>,
    ) -> Result<(), LaneLost> {
        let shared = self.shared;
        let attached = self.of(id)?;
        match &attached.how {
            Some(how) if !how.read_only && !bytes.is_empty() => {
                shared.terminal.set_author(&how.author);
            }
            _ => return Ok(()),
        }
        if let Some(key) = attached.key().map(str::to_owned) {
            attached.took = true;
            self.inputs.take(&key, bytes.len());
        }
        if self.inputs.gives_up() {
            self.abandon();
        }
        if bytes.contains(&INTERRUPT_KEY) {
            interrupt::stop_completing();
        }
        let mut rest = bytes;
        while let Some(at) = self.interrupt_key(rest) {
            // What was typed before it is given up, as every terminal does.
            self.typed.clear();
            self.paste.close();
            rest = &rest[at + 1..];
            self.give_up_typed();
            arrived.push(match self.shared.terminal.persons_cell() {
                Some(cell) => Arrived::Interrupt(cell),
                None => {
                    self.shared.terminal.cancel_line();
                    Arrived::Nudge
                }
            });
        }
        let room = MOST_TYPED.saturating_sub(self.typed.len());
        if rest.len() > room {
            let lost = rest.len() - room;
            shared.terminal.say(&format!(
                "[pythond] {lost} bytes were typed that nothing reads, and are lost"
            ));
        }
        let taken = &rest[..rest.len().min(room)];
        self.paste.pass(taken);
        self.typed.extend(taken);
        self.write_typed();
        self.shared.terminal.note_typed();
        Ok(())
    }

    /// Where in what was typed the interrupt key is, if it means an interrupt
    /// of what runs in our own process group.
    pub(super) fn interrupt_key(&self, bytes: &[u8]) -> Option<usize> {
        let follower = self.shared.terminal.follower()?;
        let modes = rustix::termios::tcgetattr(&follower.terminal).ok()?;
        let key = modes.special_codes[SpecialCodeIndex::VINTR];
        let at = bytes.iter().position(|byte| *byte == key && key != 0)?;
        let foreground = rustix::termios::tcgetpgrp(&follower.terminal).ok();
        let ours = foreground.is_none_or(|group| group == rustix::process::getpgrp());
        (ours && modes.local_modes.contains(LocalModes::ISIG)).then_some(at)
    }

    /// The input queue is emptied and the key is echoed.
    pub(super) fn give_up_typed(&self) {
        let Some(follower) = self.shared.terminal.follower() else {
            return;
        };
        let _ = rustix::termios::tcflush(&follower.terminal, QueueSelector::IFlush);
        self.let_output_go_on();
        let echo = LocalModes::ECHO | LocalModes::ECHOCTL;
        if rustix::termios::tcgetattr(&follower.terminal)
            .is_ok_and(|modes| modes.local_modes.contains(echo))
        {
            // A picture of the key; if there is no room, it is not shown.
            let _ = rustix::io::write(&follower.side, b"^C");
        }
    }
}
