//! What is listened to while an answer is waited for, output written out, and
//! the reader of that output slow: Ctrl-C, for the most part.

use std::os::fd::BorrowedFd;

use pythond_protocol::output_log::Stream;
use pythond_protocol::verbs::out::StreamEvent;
use pythond_transport::{Event, Pending, Reply, Streamed, Streaming, Waited};
use serde::de::DeserializeOwned;

use crate::descriptors::Written;
use crate::failure::Failure;
use crate::render::Render;

/// What to listen to, and what to do then.
pub(crate) trait Watch {
    /// Descriptors that become readable when there is something to do.
    fn wakes(&self) -> Vec<BorrowedFd<'_>>;

    /// Does what there is to do, if anything; a failure ends the command.
    fn woken(&mut self) -> Result<(), Failure>;

    /// The person is told that there is a wait; what they can do instead.
    fn way_out(&mut self) -> &'static str {
        ""
    }
}

/// Waits for an answer.
pub(crate) fn wait<T: DeserializeOwned>(
    mut pending: Pending<'_, T>,
    watch: &mut impl Watch,
) -> Result<Reply<T>, Failure> {
    loop {
        let waited = pending.wait_or_wake(&watch.wakes())?;
        match waited {
            Waited::Reply(reply) => return Ok(reply),
            Waited::Woken => watch.woken()?,
        }
    }
}

/// Waits for the reply and shows the events before it. A stream that never
/// rests does not keep from listening.
pub(crate) fn follow<E: DeserializeOwned, T: DeserializeOwned, W: Watch>(
    mut streaming: Streaming<'_, E, T>,
    watch: &mut W,
    mut show: impl FnMut(&Event<E>, &mut W) -> Result<(), Failure>,
) -> Result<Reply<T>, Failure> {
    loop {
        let streamed = streaming.next(&watch.wakes())?;
        match streamed {
            Streamed::Reply(reply) => return Ok(reply),
            Streamed::Event(event) => show(&event, watch)?,
            Streamed::Woken => {}
        }
        watch.woken()?;
    }
}

/// Prints one line of data.
pub(crate) fn print_line(
    text: &str,
    render: &Render,
    watch: &mut impl Watch,
) -> Result<(), Failure> {
    write(
        Stream::Stdout,
        format!("{text}\n").as_bytes(),
        render,
        watch,
    )
}

/// Writes all of it, and listens while the reader is slow.
fn write(
    stream: Stream,
    bytes: &[u8],
    render: &Render,
    watch: &mut impl Watch,
) -> Result<(), Failure> {
    let shown = render.shown(stream, bytes);
    let mut bytes = &*shown;
    loop {
        let written = render.write(stream, &mut bytes, &watch.wakes())?;
        match written {
            Written::All => return Ok(()),
            Written::Woken => watch.woken()?,
        }
    }
}

/// Where a cell's output goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) render: &'a Render,
    /// Copy to stderr what goes to stdout.
    pub(crate) echo: bool,
    /// Both streams go to stdout.
    pub(crate) merged: bool,
}

impl Target<'_> {
    /// Shows an event of a cell's output.
    pub(crate) fn show(&self, event: &StreamEvent, watch: &mut impl Watch) -> Result<(), Failure> {
        match event {
            StreamEvent::Accepted { .. } => Ok(()),
            StreamEvent::Output { stream, data, .. } => {
                let stream = match stream {
                    2 if !self.merged => Stream::Stderr,
                    _ => Stream::Stdout,
                };
                write(stream, &data.0, self.render, watch)?;
                if self.echo && stream == Stream::Stdout {
                    self.render.echo(&data.0);
                }
                Ok(())
            }
            StreamEvent::Gap {
                offset, missing, ..
            } => {
                self.render.note(&format!(
                    "output is missing here: {missing} B from offset {offset} on, not kept any more"
                ));
                Ok(())
            }
        }
    }
}
