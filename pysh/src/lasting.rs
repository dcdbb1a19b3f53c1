//! Connections that are made again when they break: what a command waits for
//! outlasts the daemon that it asked.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use pythond_protocol::ExitCode;
use pythond_transport::{Address, Client, ClientError, NO_ANSWER, Report};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::failure::{Failure, Outcome};
use crate::render::Render;
use crate::watch::Watch;

/// How long a daemon that is gone is waited for, in seconds.
const PATIENCE_VARIABLE: &str = "PYTHOND_RECONNECT";
/// The same if nothing is said.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time that is waited for a daemon.
const MOST_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Pause between two attempts, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// An attempt may take so long, were there less time left.
const LEAST_ATTEMPT: Duration = Duration::from_secs(1);
/// A connection that breaks sooner was none.
const LASTED: Duration = Duration::from_secs(1);
/// Code of a session that does not answer.
const UNREACHABLE: &str = "session_unreachable";
/// Pause before such a session is asked again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// After so long somebody who watches is told what is waited for.
const TELL_AFTER: Duration = Duration::from_millis(500);

/// The way to a daemon that may be replaced by another meanwhile.
pub(crate) struct Lasting<'a> {
    address: Address,
    render: &'a Render,
    patience: Duration,
}

/// Nothing is listened to: Ctrl-C ends the process.
pub(crate) struct Nothing;

impl Watch for Nothing {
    fn wakes(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn woken(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

impl<'a> Lasting<'a> {
    /// Reads how long to wait from the environment.
    pub(crate) fn new(address: Address, render: &'a Render) -> Result<Self, Report> {
        Ok(Self {
            address,
            render,
            patience: patience(std::env::var(PATIENCE_VARIABLE).ok())?,
        })
    }

    /// Does something with a connection, and again with a new one if it breaks
    /// meanwhile. A daemon that is not there at first is not waited for.
    pub(crate) fn attempt<T, W: Watch>(
        &self,
        watch: &mut W,
        mut what: impl FnMut(&mut Client, &mut W) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut connected = self
            .connect(MOST_PATIENCE, watch, None)?
            .map_err(Failure::from);
        let mut outage = Outage::default();
        let (mut resumed, mut told) = (false, false);
        loop {
            let began = Instant::now();
            let done = match connected {
                Ok(mut client) => what(&mut client, watch),
                Err(failure) => Err(failure),
            };
            outage.was_over_for(began.elapsed());
            connected = match done {
                Err(Failure::Broken(report) | Failure::NotBegun(report)) => {
                    resumed = true;
                    Ok(self.again(report, watch, &mut outage)?)
                }
                // It had room for us before, and will again.
                Err(Failure::NoRoom(report)) if resumed => {
                    Ok(self.again(report, watch, &mut outage)?)
                }
                // The session was there, and is: whoever waited for it goes on to.
                Err(Failure::Reported(report)) if resumed && is_unreachable(&report) => {
                    self.look_again(&report, watch, &mut told)?;
                    // The daemon may be on its way as well.
                    self.connect(MOST_PATIENCE, watch, None)?.map_err(lost)
                }
                done => return done,
            };
        }
    }

    /// Pauses before a session that does not answer is asked again.
    pub(crate) fn look_again(
        &self,
        report: &Report,
        watch: &mut impl Watch,
        told: &mut bool,
    ) -> Result<(), Failure> {
        if !std::mem::replace(told, true) {
            let way_out = watch.way_out();
            self.render
                .note(&format!("{}; still waiting{way_out}", report.message));
        }
        if pause_or_wake(LOOK_AGAIN, &watch.wakes()) {
            watch.woken()?;
        }
        Ok(())
    }

    /// A new connection after one that broke; fails with `report` if there is no
    /// daemon in time.
    pub(crate) fn again(
        &self,
        report: Report,
        watch: &mut impl Watch,
        outage: &mut Outage,
    ) -> Result<Client, Failure> {
        let began = *outage.began.get_or_insert_with(Instant::now);
        let gone = self.gone(&report);
        loop {
            let waited = began.elapsed();
            if waited >= self.patience {
                return Err(Failure::Reported(report));
            }
            self.tell_if_due(&gone, outage, watch);
            if pause_or_wake(outage.pause.min(self.patience - waited), &watch.wakes()) {
                watch.woken()?;
            }
            outage.pause = (outage.pause * 2).min(PAUSES.1);
            // Whatever is wrong may be right in a moment: a socket that is
            // made, a daemon that has too many connections.
            let left = self.patience.saturating_sub(began.elapsed());
            let told = Some((&gone, &mut *outage));
            match self.connect(left.max(LEAST_ATTEMPT), watch, told)? {
                Ok(client) => return Ok(client),
                // But for what only somebody can put right: a pin, a token.
                Err(error) if error.is_final() => return Err(Failure::Reported(error.into())),
                Err(_) => {}
            }
        }
    }

    /// What is told of a daemon that is waited for, and from when on.
    fn gone(&self, report: &Report) -> Gone {
        let (after, message) = match report.code == NO_ANSWER {
            // Whoever watches has waited long enough.
            true => (Duration::ZERO, report.message.clone()),
            false => (TELL_AFTER, "the daemon is gone".to_owned()),
        };
        let message = match &self.address {
            Address::Unix(_) => message,
            Address::Tcp(_) | Address::Ssh(_) => message.replacen(
                "the daemon",
                &format!("the daemon at `{}`", self.address),
                1,
            ),
        };
        Gone { after, message }
    }

    /// Tells somebody who watches what is waited for, once.
    fn tell_if_due(&self, gone: &Gone, outage: &mut Outage, watch: &mut impl Watch) {
        if gone.left(outage) == Some(Duration::ZERO) {
            outage.told = true;
            let seconds = self.patience.as_secs_f64();
            let (message, way_out) = (&gone.message, watch.way_out());
            self.render.note(&format!(
                "{message}; waiting up to {seconds} s for it to come back{way_out}"
            ));
        }
    }

    /// A connection, or why there is none. The way to another machine may take
    /// its time, so that it is gone on a thread of its own, which ends with its
    /// answer or with the process.
    fn connect(
        &self,
        limit: Duration,
        watch: &mut impl Watch,
        mut told: Option<(&Gone, &mut Outage)>,
    ) -> Result<Result<Client, ClientError>, Failure> {
        let found = match &self.address {
            Address::Unix(_) => Client::connect_within(&self.address, limit),
            Address::Tcp(_) | Address::Ssh(_) => {
                let address = self.address.clone();
                let connecting = move || Client::connect_within(&address, limit);
                in_background(connecting, watch, |watch| {
                    let (gone, outage) = told.as_mut()?;
                    self.tell_if_due(gone, outage, watch);
                    gone.left(outage)
                })?
            }
        };
        Ok(found.map(|client| self.render.connected(client)))
    }

    /// Carries out a command that may be carried out twice; it is if the
    /// connection breaks.
    pub(crate) fn repeat(&self, mut command: impl FnMut() -> Outcome) -> Outcome {
        let mut outage = Outage::default();
        loop {
            match command() {
                Err(Failure::Broken(report) | Failure::NotBegun(report)) => {
                    drop(self.again(report, &mut Nothing, &mut outage)?);
                }
                done => return done,
            }
        }
    }

    /// Carries out a command that may be carried out only once; again if it is
    /// certain that the daemon that went has not begun it.
    pub(crate) fn once(&self, mut command: impl FnMut() -> Outcome) -> Outcome {
        let mut outage = Outage::default();
        loop {
            match command() {
                Err(Failure::NotBegun(report)) => {
                    drop(self.again(report, &mut Nothing, &mut outage)?);
                }
                done => return done,
            }
        }
    }
}

/// Does something that takes its time, and listens meanwhile. `meanwhile` is called at
/// first, and again when the time is up that it gives back.
fn in_background<T: Send + 'static, W: Watch>(
    what: impl FnOnce() -> T + Send + 'static,
    watch: &mut W,
    mut meanwhile: impl FnMut(&mut W) -> Option<Duration>,
) -> Result<T, Failure> {
    let failed = |error: std::io::Error| {
        let message = format!("cannot work in the background: {error}");
        Failure::from(Report::new("internal", message, ExitCode::Refused))
    };
    let (done, in_work) = UnixStream::pair().map_err(failed)?;
    let (sender, receiver) = sync_channel(1);
    let work = move || {
        // Nobody waits for it if something else has ended the command.
        let _ = sender.send(what());
        drop(in_work);
    };
    std::thread::Builder::new().spawn(work).map_err(failed)?;
    loop {
        {
            let limit = meanwhile(watch).and_then(|left| Timespec::try_from(left).ok());
            let mut set = vec![PollFd::new(&done, PollFlags::IN)];
            let wakes = watch.wakes();
            set.extend(wakes.into_iter().map(readable));
            // A signal that is ours to see comes by a descriptor too.
            let _ = poll(&mut set, limit.as_ref());
        }
        match receiver.try_recv() {
            Ok(found) => return Ok(found),
            Err(TryRecvError::Empty) => watch.woken()?,
            Err(TryRecvError::Disconnected) => {
                return Err(failed(std::io::Error::other("it has ended early")));
            }
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

/// A daemon that was there is not reached: it may be again.
fn lost(error: ClientError) -> Failure {
    let is_final = error.is_final();
    let report = Report::from(error);
    if is_final {
        Failure::Reported(report)
    } else {
        Failure::Broken(report)
    }
}

/// It tells of a session that does not answer.
pub(crate) fn is_unreachable(report: &Report) -> bool {
    report.code == UNREACHABLE
}

/// What is told of a daemon that is not there.
struct Gone {
    /// After so long without it.
    after: Duration,
    message: String,
}

impl Gone {
    /// How long it is until it is told; none if it was.
    fn left(&self, outage: &Outage) -> Option<Duration> {
        let waited = outage.began.map(|began| began.elapsed());
        (!outage.told).then(|| self.after.saturating_sub(waited.unwrap_or_default()))
    }
}

/// A time without a connection that lasted.
#[derive(Debug)]
pub(crate) struct Outage {
    began: Option<Instant>,
    pause: Duration,
    told: bool,
}

impl Outage {
    /// A connection was there for so long.
    pub(crate) fn was_over_for(&mut self, span: Duration) {
        if span >= LASTED {
            *self = Self::default();
        }
    }
}

impl Default for Outage {
    fn default() -> Self {
        Self {
            began: None,
            pause: PAUSES.0,
            told: false,
        }
    }
}

/// True if it was woken before the pause was over.
fn pause_or_wake(pause: Duration, wakes: &[BorrowedFd<'_>]) -> bool {
    let mut set: Vec<_> = wakes.iter().copied().map(readable).collect();
    let limit: Option<Timespec> = pause.try_into().ok();
    // A signal ends the pause early, which only costs an attempt.
    matches!(poll(&mut set, limit.as_ref()), Ok(ready) if ready > 0)
}

fn patience(variable: Option<String>) -> Result<Duration, Report> {
    let Some(value) = variable.filter(|value| !value.is_empty()) else {
        return Ok(PATIENCE);
    };
    let seconds = value.trim().parse().ok();
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|patience| *patience <= MOST_PATIENCE)
        .ok_or_else(|| {
            let most = MOST_PATIENCE.as_secs();
            Report::new(
                "usage",
                format!(
                    "`{PATIENCE_VARIABLE}` is `{value}`, and should be seconds from 0 to {most}"
                ),
                ExitCode::Usage,
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_a_number_of_seconds() {
        let of = |text: &str| patience(Some(text.to_owned()));
        assert_eq!(patience(None), Ok(PATIENCE));
        assert_eq!(of(""), Ok(PATIENCE));
        assert_eq!(of("0"), Ok(Duration::ZERO));
        assert_eq!(of(" 2.5 "), Ok(Duration::from_millis(2500)));
        for wrong in ["-1", "soon", "1e9", "nan"] {
            assert_eq!(of(wrong).unwrap_err().exit, ExitCode::Usage, "{wrong}");
        }
    }
}
