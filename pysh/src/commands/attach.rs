//! `pysh attach [NAME]`.

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use pythond_protocol::verbs::attach::{AttachReply, TerminalEnd, is_terminal_word};
use pythond_protocol::{ExitCode, SessionName};
use pythond_transport::{
    Address, AttachOptions, Attachment, Client, Incoming, Report, TransportError, Waited,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::stdin;
use rustix::termios::QueueSelector;
use signal_hook::consts::{SIGCONT, SIGTSTP, SIGWINCH};

use super::attached::{Attached, End, Person, SIGNALS};
use super::dispatch::address;
use crate::args::AttachArgs;
use crate::failure::{Failure, Outcome};
use crate::lasting::{Lasting, Outage};
use crate::render::Render;
use crate::terminal::{Output, Signals, TerminalGuard, terminal_size};
use crate::text::one_line;
use crate::watch::Watch;

/// How long the daemon may take to acknowledge that we leave. The person has
/// the terminal back already.
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);
/// How long the terminal may take to take the last words.
const SAY_LIMIT: Duration = Duration::from_millis(300);

pub(super) fn attach(args: &AttachArgs, render: &Render) -> Outcome {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(no_terminal(&args.name).into());
    }
    let address = address()?;
    // Before signals are ours: Ctrl-C ends the wait for a daemon that is stuck.
    let mut connected = Some(Client::connect(&address)?);
    let signals = Signals::install(&SIGNALS).map_err(|error| {
        let message = format!("cannot wait for signals: {error}");
        Report::new("internal", message, ExitCode::Refused)
    })?;
    let person = Person {
        session: &args.name,
        signals: &signals,
        read_only: args.read_only,
        unfiltered: args.unfiltered,
    };
    let line = Lasting::new(address.clone(), render)?;
    let mut outage = Outage::default();
    let mut first = true;
    loop {
        let options = options(args.read_only);
        let (attachment, reply) = match attached_to(connected.take(), &address, &person, &options) {
            Err(Failure::Broken(report) | Failure::NotBegun(report)) => {
                connected = Some(line.again(report, &mut Leaving(&signals), &mut outage)?);
                continue;
            }
            done => done?,
        };
        if std::mem::take(&mut first) {
            render.talk(&banner(&reply));
            // What stands on the screen is scrolled away, where it can be
            // found again: the session's screen is drawn over it.
            render.talk(&"\n".repeat(usize::from(options.size.rows)));
        }
        let guard = TerminalGuard::enter().map_err(|error| {
            let message = format!("the terminal cannot be put into raw mode: {error}");
            Report::new("terminal", message, ExitCode::Refused)
        })?;
        let mut attached = Attached::new(&person, attachment, guard, options.size, reply.held);
        let began = Instant::now();
        let mut end = attached.run();
        outage.was_over_for(began.elapsed());
        let held = attached.held();
        let attachment = attached.into_attachment();
        if matches!(end, End::Continued) {
            // Of the stop and its end; a resize is seen anyway.
            match ending(&signals) {
                Some(signal) => end = End::Signal(signal),
                None => {
                    leave(attachment, Duration::ZERO);
                    continue;
                }
            }
        }
        if let End::Lost(_) = end {
            let lost = Report::new("connection", String::new(), ExitCode::NoDaemon);
            match line.again(lost, &mut Leaving(&signals), &mut outage) {
                Ok(client) => {
                    // What was typed into nothing is not for the session.
                    let _ = rustix::termios::tcflush(stdin(), QueueSelector::IFlush);
                    connected = Some(client);
                    continue;
                }
                Err(Failure::Ended) => return Err(Failure::Ended),
                Err(_) => {}
            }
        }
        let (text, exit) = told(&args.name, &end, held, render);
        say(&text, render);
        if !matches!(end, End::Closed(..) | End::Lost(_)) {
            leave(attachment, GOODBYE_LIMIT);
        }
        if let End::Signal(signal) = end {
            // Ends the process as the signal would have, so that its parent
            // sees why; if it cannot, the exit code says nearly the same.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
        return Ok(exit);
    }
}

/// A signal that ends programs ends the wait for a daemon.
struct Leaving<'a>(&'a Signals);

impl Watch for Leaving<'_> {
    fn wakes(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.0.as_fd()]
    }

    fn woken(&mut self) -> Result<(), Failure> {
        match ending(self.0) {
            Some(signal) => {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
                Err(Failure::Ended)
            }
            None => Ok(()),
        }
    }
}

/// Says something after the end, though not for ever: a terminal that does not
/// read must not keep the process.
fn say(text: &str, render: &Render) {
    if !render.stderr_is_terminal {
        return render.talk(text);
    }
    let mut output = Output::open();
    let _ = output
        .write(text.as_bytes())
        .and_then(|()| output.drain(SAY_LIMIT));
}

/// A signal that came and that ends programs.
fn ending(signals: &Signals) -> Option<i32> {
    let mut came = signals.take().into_iter();
    came.find(|signal| ![SIGCONT, SIGTSTP, SIGWINCH].contains(signal))
}

fn no_terminal(session: &SessionName) -> Report {
    Report::new(
        "usage",
        "`attach` needs a terminal: stdin or stdout is none",
        ExitCode::Usage,
    )
    .with_hint(format!(
        "run code with `pysh run {session} CODE`; from a program that has no terminal, \
         `script -qc 'pysh attach {session}' /dev/null` makes one"
    ))
}

fn options(read_only: bool) -> AttachOptions {
    let word = |name| {
        let value = std::env::var(name).ok();
        value.filter(|value| is_terminal_word(value))
    };
    AttachOptions {
        size: terminal_size(),
        read_only,
        term: word("TERM"),
        colorterm: word("COLORTERM"),
    }
}

/// Attaches; a signal that ends programs ends the wait.
fn attached_to(
    connected: Option<Client>,
    address: &Address,
    person: &Person<'_>,
    options: &AttachOptions,
) -> Result<(Attachment, AttachReply), Failure> {
    let mut client = match connected {
        Some(client) => client,
        None => Client::connect(address)?,
    };
    let mut pending = client.attach(person.session, options)?;
    let reply = loop {
        match pending.wait_or_wake(&[person.signals.as_fd()])? {
            Waited::Reply(reply) => break reply.value,
            Waited::Woken => {
                if let Some(signal) = ending(person.signals) {
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                    return Err(Failure::Ended);
                }
            }
        }
    };
    let session = person.session.clone();
    Ok((Attachment::of(client, session), reply))
}

/// What the person has to know before the keys are the session's.
fn banner(reply: &AttachReply) -> String {
    let name = &reply.session;
    let mut text = if reply.read_only {
        format!("watching {name}, nothing is typed. Ctrl-] detaches\n")
    } else if reply.held {
        format!("attached to {name}. Ctrl-] detaches, Ctrl-\\ releases agents: their cells wait\n")
    } else {
        format!(
            "attached to {name}. Ctrl-] detaches, Ctrl-\\ holds agents: new cells of theirs wait\n"
        )
    };
    match reply.attached {
        0 | 1 => {}
        2 => text.push_str("another terminal is attached too\n"),
        others => text.push_str(&format!(
            "{} other terminals are attached too\n",
            others - 1
        )),
    }
    text
}

/// What happened, in words, lines ended, and how the process ends.
fn told(session: &SessionName, end: &End, held: bool, render: &Render) -> (String, ExitCode) {
    let attach_again = format!("`pysh attach {session}` attaches again");
    let report = match end {
        End::Detached if held => {
            let text = format!(
                "detached from {session}; agents' new cells still wait, \
                 `pysh release {session}` lets them run\n"
            );
            return (text, ExitCode::Success);
        }
        End::Detached | End::Continued => {
            return (format!("detached from {session}\n"), ExitCode::Success);
        }
        End::Signal(_) => {
            let text = format!("detached from {session} by a signal\n");
            return (text, ExitCode::Interrupted);
        }
        // Nobody is there to read it.
        End::TerminalGone => return (String::new(), ExitCode::Success),
        End::Closed(TerminalEnd::Exited, message) => {
            let text = format!("session {session} ended: {}\n", one_line(message));
            return (text, ExitCode::Success);
        }
        End::Closed(TerminalEnd::CutOff, message) => Report::new(
            "cut_off",
            format!("cut off from session {session}: {message}"),
            ExitCode::Refused,
        )
        .with_hint(attach_again),
        End::Closed(_, message) => Report::new(
            "session_died",
            format!("session {session} ended: {message}"),
            ExitCode::SessionDied,
        )
        .with_hint(format!("see `pysh status {session}`")),
        End::Lost(error) => {
            let cause = match error {
                TransportError::Closed => "the connection was closed".to_owned(),
                error => error.to_string(),
            };
            Report::new(
                "connection",
                format!("the daemon has gone: {cause}"),
                ExitCode::NoDaemon,
            )
            .with_hint(format!(
                "the session may live on; see `pyctl status`, then {attach_again}"
            ))
        }
    };
    (report.to_human(render.colour()), report.exit)
}

/// Detaches in order: closing at once could lose what was typed last.
fn leave(mut attachment: Attachment, limit: Duration) {
    let deadline = Instant::now() + limit;
    if attachment.send_detach().is_err() {
        return;
    }
    loop {
        match attachment.take() {
            Ok(Some(Incoming::Closed)) | Err(_) => return,
            Ok(Some(_)) => continue,
            Ok(None) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(left) = Some(left).filter(|left| !left.is_zero()) else {
            return;
        };
        let mut flags = PollFlags::IN;
        if attachment.unsent() > 0 {
            flags |= PollFlags::OUT;
        }
        let limit: Option<Timespec> = left.try_into().ok();
        let mut descriptors = [PollFd::from_borrowed_fd(attachment.as_fd(), flags)];
        if poll(&mut descriptors, limit.as_ref()).is_err() {
            return;
        }
        if attachment.flush().is_err() {
            return;
        }
    }
}
