//! `pysh attach [NAME]`.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use pythond_protocol::lane::InputKey;
use pythond_protocol::verbs::attach::{
    AttachEvent, AttachReply, TerminalEnd, TerminalSize, is_terminal_word,
};
use pythond_protocol::{ExitCode, SessionPath};
use pythond_transport::{
    AttachOptions, Attachment, Client, Incoming, NO_ANSWER, Report, TransportError,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::attached::{Attached, End, Person, SIGNALS};
use super::dispatch::{address, connect_to};
use super::late::Late;
use super::typing::{Outside, Typing, ending};
use crate::args::AttachArgs;
use crate::failure::{Failure, Outcome};
use crate::lasting::{Lasting, Outage, is_unreachable};
use crate::render::Render;
use crate::terminal::{Output, Signals, TerminalGuard, terminal_size};
use crate::text::one_line;
use crate::watch::wait;

/// How long the daemon may take to acknowledge that we leave. The person has
/// the terminal back already.
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);
/// So many times as long while it has not acknowledged all that was typed.
const UNTAKEN: u32 = 4;
/// How long a session that was attached may take to answer again before the person
/// is told.
const ANSWER: Duration = Duration::from_secs(1);
/// How long the terminal may take to take the last words.
const SAY_LIMIT: Duration = Duration::from_millis(300);

pub(super) fn attach(args: &AttachArgs, render: &Render) -> Outcome {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(no_terminal(&args.name).into());
    }
    let address = address()?;
    // Before signals are ours: Ctrl-C ends the wait for a daemon that is stuck.
    let mut connected = Some(connect_to(&address, render)?);
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
    let mut typing = Typing::new(args.read_only)?;
    let mut outage = Outage::default();
    let mut told_to_wait = false;
    let mut guard: Option<TerminalGuard> = None;
    let (end, attachment, held) = loop {
        let size = terminal_size();
        let input = typing.input();
        let keyboard = guard.is_some().then_some(&mut typing);
        let mut outside = Outside::new(&signals, keyboard);
        if guard.is_some() && !told_to_wait {
            let words = format!("session `{}` does not answer", args.name);
            outside.late = Late::after(ANSWER, words).map(|late| (late, render));
        }
        let client = match connected.take() {
            Some(client) => Ok(client),
            None => connect_to(&address, render).map_err(Failure::from),
        };
        let attached =
            client.and_then(|client| attached_to(client, &person, size, input, &mut outside));
        let attached = match attached {
            Err(Failure::Broken(report) | Failure::NotBegun(report)) => {
                match line.again(report, &mut outside, &mut outage) {
                    Ok(client) => {
                        connected = Some(client);
                        continue;
                    }
                    Err(failure) => Err(failure),
                }
            }
            // It was there, and is: a daemon that has just started may not know
            // more.
            Err(Failure::Reported(report)) if guard.is_some() && is_unreachable(&report) => {
                match line.look_again(&report, &mut outside, &mut told_to_wait) {
                    Ok(()) => continue,
                    Err(failure) => Err(failure),
                }
            }
            done => done,
        };
        let (attachment, reply) = match (attached, outside.end) {
            (Ok(attached), _) => attached,
            (Err(_), Some(End::Signal(signal))) if guard.is_none() => {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
                return Err(Failure::Ended);
            }
            (Err(_), Some(end)) => break (end, None, false),
            (Err(Failure::Reported(report)), None) if typing.is_refused(&report) => continue,
            (Err(failure), None) => {
                drop(guard);
                if let Some(words) = typing.kept().farewell() {
                    render.note(&words);
                }
                return Err(failure);
            }
        };
        typing.attached(&reply);
        told_to_wait = false;
        let guard = match &mut guard {
            Some(guard) => {
                guard.go_on();
                guard
            }
            None => {
                render.talk(&banner(&reply));
                // What stands on the screen is scrolled away, where it can be
                // found again: the session's screen is drawn over it.
                render.talk(&"\n".repeat(usize::from(size.rows)));
                let entered = TerminalGuard::enter();
                guard.insert(entered.map_err(|error| raw_mode_failed(&error))?)
            }
        };
        let mut attached = Attached::new(&person, attachment, guard, &mut typing, size, reply.held);
        let began = Instant::now();
        let end = attached.run();
        outage.was_over_for(began.elapsed());
        let held = attached.held();
        let attachment = attached.into_attachment();
        match end {
            End::Continued => {
                // Of the stop and its end; a resize is seen anyway.
                if let Some(signal) = ending(&signals) {
                    break (End::Signal(signal), Some(attachment), held);
                }
                leave(attachment, &mut typing, Duration::ZERO);
                guard.again().map_err(|error| raw_mode_failed(&error))?;
            }
            End::Lost(error) => {
                drop(attachment);
                let code = match error {
                    TransportError::Silent(_) => NO_ANSWER,
                    _ => "connection",
                };
                let lost = Report::new(code, error.to_string(), ExitCode::NoDaemon);
                let mut outside = Outside::new(&signals, Some(&mut typing));
                match line.again(lost, &mut outside, &mut outage) {
                    Ok(client) => connected = Some(client),
                    Err(_) => break (outside.end.unwrap_or(End::Lost(error)), None, held),
                }
            }
            end => break (end, Some(attachment), held),
        }
    };
    drop(guard);
    let (text, exit) = told(&args.name, &end, held, render);
    say(&text, render);
    let broke = match attachment {
        Some(_) if matches!(end, End::Closed(..)) => false,
        Some(attachment) => leave(attachment, &mut typing, GOODBYE_LIMIT),
        None => true,
    };
    if broke && matches!(end, End::Detached) {
        deliver(&line, &person, &mut typing);
    }
    if let Some(words) = typing.kept().farewell() {
        say(&format!("note: {words}\n"), render);
    }
    if let End::Signal(signal) = end {
        // Ends the process as the signal would have, so that its parent
        // sees why; if it cannot, the exit code says nearly the same.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    Ok(exit)
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

fn no_terminal(session: &SessionPath) -> Report {
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

fn raw_mode_failed(error: &std::io::Error) -> Report {
    let message = format!("the terminal cannot be put into raw mode: {error}");
    Report::new("terminal", message, ExitCode::Refused)
}

fn options(person: &Person<'_>, size: TerminalSize, input: Option<InputKey>) -> AttachOptions {
    let word = |name| {
        let value = std::env::var(name).ok();
        value.filter(|value| is_terminal_word(value))
    };
    AttachOptions {
        size,
        read_only: person.read_only,
        term: word("TERM"),
        colorterm: word("COLORTERM"),
        input,
    }
}

/// Attaches; what is listened to may end the wait.
fn attached_to(
    mut client: Client,
    person: &Person<'_>,
    size: TerminalSize,
    input: Option<InputKey>,
    outside: &mut Outside<'_>,
) -> Result<(Attachment, AttachReply), Failure> {
    let options = options(person, size, input);
    let pending = client.attach(person.session, &options)?;
    let reply = wait(pending, outside)?.value;
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
fn told(session: &SessionPath, end: &End, held: bool, render: &Render) -> (String, ExitCode) {
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
            let (code, message) = match error {
                TransportError::Closed => {
                    let message = "the daemon has gone: the connection was closed";
                    ("connection", message.to_owned())
                }
                TransportError::Silent(_) => (NO_ANSWER, error.to_string()),
                error => ("connection", format!("the daemon has gone: {error}")),
            };
            Report::new(code, message, ExitCode::NoDaemon).with_hint(format!(
                "the session may live on; see `pyctl status`, then {attach_again}"
            ))
        }
    };
    (report.to_human(render.colour()), report.exit)
}

/// Detaches in order: closing at once could lose what was typed last. True if the
/// connection broke before the session had all of it.
fn leave(mut attachment: Attachment, typing: &mut Typing, limit: Duration) -> bool {
    let kept = typing.kept();
    while let Some(piece) = kept.next(usize::MAX) {
        if attachment.send_typed(&piece).is_err() {
            return true;
        }
    }
    let limit = match kept.len() {
        0 => limit,
        _ => limit * UNTAKEN,
    };
    let deadline = Instant::now() + limit;
    let mut detaches = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if !detaches && (kept.len() == 0 || left.is_zero()) {
            detaches = true;
            if attachment.send_detach().is_err() {
                return kept.len() > 0;
            }
        }
        match attachment.take() {
            Ok(Some(Incoming::Closed)) | Err(_) => return kept.len() > 0,
            Ok(came) => {
                if let Some(Incoming::Event(AttachEvent::InputTaken { taken })) = came {
                    kept.acknowledged(taken);
                }
                // A daemon that goes on and on is left all the same.
                if came.is_some() && !left.is_zero() {
                    continue;
                }
            }
        }
        if left.is_zero() {
            return false;
        }
        let mut flags = PollFlags::IN;
        if attachment.unsent() > 0 {
            flags |= PollFlags::OUT;
        }
        let limit: Option<Timespec> = left.try_into().ok();
        let mut descriptors = [PollFd::from_borrowed_fd(attachment.as_fd(), flags)];
        if poll(&mut descriptors, limit.as_ref()).is_err() {
            return false;
        }
        if attachment.flush().is_err() {
            return kept.len() > 0;
        }
    }
}

/// The person has left, and the daemon was gone before it had what was typed last:
/// gives it to the next one. The terminal is the person's again, and Ctrl-C ends
/// this.
fn deliver(line: &Lasting<'_>, person: &Person<'_>, typing: &mut Typing) {
    let mut outage = Outage::default();
    let mut broke = true;
    while broke && typing.kept().len() > 0 {
        let mut outside = Outside::new(person.signals, None);
        outside.way_out = "; Ctrl-C gives up what it has not taken of what was typed";
        let lost = Report::new("connection", String::new(), ExitCode::NoDaemon);
        let Ok(client) = line.again(lost, &mut outside, &mut outage) else {
            return;
        };
        match attached_to(
            client,
            person,
            terminal_size(),
            typing.input(),
            &mut outside,
        ) {
            Ok((attachment, reply)) => {
                typing.attached(&reply);
                broke = leave(attachment, typing, GOODBYE_LIMIT);
            }
            Err(Failure::Broken(_) | Failure::NotBegun(_)) => {}
            // What is left is told.
            Err(_) => return,
        }
    }
}
