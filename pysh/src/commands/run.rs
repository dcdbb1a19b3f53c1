//! `pysh run NAME CODE`.

use std::os::fd::AsFd as _;

use pythond_protocol::verbs::run::CellReply;
use pythond_protocol::{ExitCode, SessionName};
use pythond_transport::{Address, Client, ClientError, Pending, Reply, Report, Waited};

use super::dispatch::address;
use crate::args::RunArgs;
use crate::cell_output::{Ending, ending, exit_code, pieces};
use crate::failure::{Failure, Outcome};
use crate::interrupts::Interrupts;
use crate::render::Render;
use crate::{echo, source};

pub(super) fn run(args: RunArgs, render: &Render) -> Outcome {
    let code = source::read_source(args.code, std::io::stdin().lock())?;
    let echo = !render.json
        && echo::wanted(
            args.echo,
            args.no_echo,
            render.stderr_is_terminal,
            render.stdout_is_terminal,
        );
    if echo {
        render.talk(&echo::code(&code, render.colour()));
    }
    let address = address()?;
    let mut client = Client::connect(&address)?;
    let interrupts = Interrupts::install().map_err(|error| {
        Report::new(
            "internal",
            format!("cannot wait for Ctrl-C: {error}"),
            ExitCode::Refused,
        )
    })?;
    let pending = client.run(&args.name, &code)?;
    let reply = wait(
        pending,
        &Interruption {
            interrupts,
            address,
            session: args.name,
            render,
        },
    )?;
    show(&reply, echo, render)
}

fn show(reply: &Reply<CellReply>, echo: bool, render: &Render) -> Outcome {
    let cell = &reply.value;
    let exit = exit_code(cell);
    if render.json {
        render.line(reply.json())?;
        return Ok(exit);
    }
    // What stdout gets twice on one terminal is no echo but a stutter.
    let copy_stdout = echo && !render.stdout_is_terminal;
    let written = render.output(pieces(cell), copy_stdout);
    if cell.truncated > 0 {
        render.note(&format!("{} bytes of output were not kept", cell.truncated));
    }
    match ending(cell) {
        None => {}
        Some(Ending::Traceback(text)) => render.talk(&text),
        Some(Ending::Report(report)) => render.error(&report),
    }
    if let Some(reason) = &cell.not_recorded {
        render.note(&format!("not recorded: {reason}"));
    }
    written?;
    Ok(exit)
}

/// What Ctrl-C does while a cell is waited for.
struct Interruption<'a> {
    interrupts: Interrupts,
    address: Address,
    session: SessionName,
    render: &'a Render,
}

/// Waits for the cell. The first Ctrl-C interrupts it, and its reply is waited
/// for; the second one leaves.
fn wait(
    mut cell: Pending<'_, CellReply>,
    on: &Interruption<'_>,
) -> Result<Reply<CellReply>, Failure> {
    let mut interrupted = false;
    loop {
        match cell.wait_or_wake(Some(on.interrupts.as_fd()))? {
            Waited::Reply(reply) => return Ok(reply),
            Waited::Woken if interrupted => return Err(left(&on.session).into()),
            Waited::Woken => {
                on.interrupts.clear();
                interrupted = true;
                send_interrupt(on)?;
            }
        }
    }
}

/// Asks for the interrupt on a connection of its own: the first one answers
/// in order, after the cell.
fn send_interrupt(on: &Interruption<'_>) -> Result<(), Failure> {
    let told = Client::connect(&on.address).and_then(|mut client| {
        let mut pending = client.interrupt(&on.session)?;
        pending.wait_or_wake(Some(on.interrupts.as_fd()))
    });
    match told {
        Ok(Waited::Reply(reply)) if reply.value.interrupted.is_empty() => {
            on.render
                .note("no cell is running; Ctrl-C again leaves this one where it waits");
            Ok(())
        }
        Ok(Waited::Reply(_)) => Ok(()),
        Ok(Waited::Woken) => Err(left(&on.session).into()),
        Err(error) => {
            on.render.error(&not_interrupted(error));
            Ok(())
        }
    }
}

fn not_interrupted(error: ClientError) -> Report {
    let mut report = Report::from(error);
    report
        .message
        .insert_str(0, "the cell could not be interrupted: ");
    report.hint = Some("Ctrl-C again leaves it running".to_owned());
    report
}

fn left(session: &SessionName) -> Report {
    Report::new(
        "interrupted",
        format!("left `{session}` before the cell ended; the cell goes on"),
        ExitCode::Interrupted,
    )
    .with_hint(format!("see `pysh status {session}`"))
}
