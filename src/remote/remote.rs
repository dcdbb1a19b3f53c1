//! One remote daemon: the link to it, made when it is needed, kept, and made again
//! when it breaks.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use pythond_protocol::verbs::connect::{EndpointAttempt, RemoteState, RemoteSummary};
use pythond_transport::Spoken;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::dial::{Dialled, dial};
use super::error::{DialError, RemoteError};
use super::link::{Exchange, Link, OnLoss, Seen};
use super::spec::RemoteSpec;
use crate::log::Log;

/// Pauses between two rounds of tries, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// A link that broke sooner was none, and the pauses after such ones, at first and at
/// most.
const LASTED: Duration = Duration::from_secs(1);
pub(super) const HASTE: (Duration, Duration) =
    (Duration::from_millis(5), Duration::from_millis(250));
/// How long a request that is under way waits for the link to be made again: a
/// machine that slept for ten minutes comes back.
pub(super) const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long a way that broke is worth more than one try to whoever asks anew.
const FRESH: Duration = Duration::from_secs(10);
/// How long whoever asks anew waits at most: all endpoints may be tried.
const CONNECT: Duration = Duration::from_secs(200);
/// Tries that are remembered.
const ATTEMPTS: usize = 16;
/// Most requests on a link, so that the other end takes all of them: those that may
/// last, and those for which a place is always free soon.
const LASTING: usize = 960;
const BRIEF: usize = 40;

struct State {
    phase: RemoteState,
    link: Option<Link>,
    /// Rounds in which no endpoint answered.
    failed_rounds: u64,
    error: Option<RemoteError>,
    /// When the link did last.
    broke: Option<Instant>,
    endpoint: Option<String>,
    /// What it spoke last.
    spoken: Option<Spoken>,
    round_trip: Option<Duration>,
    connections: u64,
    attempts: VecDeque<EndpointAttempt>,
    /// What a connection made known, for whoever asked for it.
    note: Option<String>,
}

/// One remote daemon.
pub(crate) struct Remote {
    pub(crate) spec: RemoteSpec,
    home: PathBuf,
    /// What our daemon says of itself.
    boot: Arc<str>,
    log: Log,
    state: watch::Sender<State>,
    /// Somebody needs the link now.
    wanted: Notify,
    tags: AtomicU64,
    /// Room on the link for any request, and for those that are answered at once.
    room: Semaphore,
    kept_room: Semaphore,
    /// Somebody has disconnected it.
    gone: CancellationToken,
}

impl Remote {
    pub(crate) fn new(spec: RemoteSpec, home: PathBuf, boot: Arc<str>, log: Log) -> Arc<Self> {
        let (state, _) = watch::channel(State {
            phase: RemoteState::Idle,
            link: None,
            failed_rounds: 0,
            error: None,
            broke: None,
            endpoint: None,
            spoken: None,
            round_trip: None,
            connections: 0,
            attempts: VecDeque::new(),
            note: None,
        });
        Arc::new(Self {
            spec,
            home,
            boot,
            log,
            state,
            wanted: Notify::new(),
            tags: AtomicU64::new(1),
            room: Semaphore::new(LASTING),
            kept_room: Semaphore::new(BRIEF),
            gone: CancellationToken::new(),
        })
    }

    /// Keeps the link, from the first time that somebody needs it until the remote
    /// is disconnected.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = self.gone.cancelled() => {}
            () = stop.cancelled() => {}
            () = self.keep_link() => {}
        }
        self.state.send_modify(|state| {
            state.link = None;
            state.phase = RemoteState::Idle;
        });
    }

    async fn keep_link(&self) {
        self.wanted.notified().await;
        let mut hasty = HASTE.0;
        loop {
            let pauses = ExponentialBuilder::default()
                .with_min_delay(PAUSES.0)
                .with_max_delay(PAUSES.1)
                .without_max_times()
                .with_jitter();
            let mut pauses = pauses.build();
            let dialled = loop {
                self.state
                    .send_modify(|state| state.phase = RemoteState::Connecting);
                let error = match self.dial().await {
                    Ok(dialled) => break dialled,
                    Err(error) => error,
                };
                let needs_somebody = error.needs_somebody;
                self.state.send_modify(|state| {
                    state.phase = match needs_somebody {
                        true => RemoteState::Refused,
                        false => RemoteState::Down,
                    };
                    state.failed_rounds += 1;
                    state.error = Some(error);
                });
                let pause = pauses.next().unwrap_or(PAUSES.1);
                tokio::select! {
                    () = self.wanted.notified() => {}
                    () = tokio::time::sleep(pause), if !needs_somebody => {}
                }
            };
            let began = Instant::now();
            self.serve(dialled).await;
            // One that lets us in and out again must not keep both of us busy,
            // whoever waits for it.
            hasty = match began.elapsed() < LASTED {
                true => (hasty * 2).min(HASTE.1),
                false => HASTE.0,
            };
            tokio::time::sleep(hasty).await;
        }
    }

    async fn serve(&self, dialled: Dialled) {
        let (link, service) = Link::new(dialled.spoken, self.is_own(&dialled));
        let spoken = dialled.spoken;
        self.state.send_modify(|state| {
            state.phase = RemoteState::Up;
            state.link = Some(link);
            state.spoken = Some(spoken);
            state.connections += 1;
            state.error = None;
        });
        let why = service
            .serve(dialled, |Seen::RoundTrip(span)| {
                self.state
                    .send_modify(|state| state.round_trip = Some(span));
            })
            .await;
        let name = &self.spec.name;
        self.log.note(&format!("remote {name}: {why}"));
        self.state.send_modify(|state| {
            state.phase = RemoteState::Down;
            state.link = None;
            state.broke = Some(Instant::now());
            state.error = Some(RemoteError::new(why));
        });
    }

    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    /// What each of them said.
    pub(crate) async fn dial(&self) -> Result<Dialled, RemoteError> {
        tokio::select! {
            biased;
            gone = self.disconnected() => Err(gone),
            dialled = self.dial_in_order() => dialled,
        }
    }

    async fn dial_in_order(&self) -> Result<Dialled, RemoteError> {
        let mut failed: Vec<(String, DialError)> = Vec::new();
        for endpoint in &self.spec.endpoints {
            let began = Instant::now();
            let at = jiff::Timestamp::now().to_string();
            let dialled = dial(&self.spec, endpoint, &self.home).await;
            let endpoint = endpoint.to_string();
            let attempt = EndpointAttempt {
                endpoint: endpoint.clone(),
                at,
                took_ms: began.elapsed().as_secs_f64() * 1000.0,
                error: dialled.as_ref().err().map(ToString::to_string),
            };
            self.state.send_modify(|state| {
                if state.attempts.len() >= ATTEMPTS {
                    state.attempts.pop_front();
                }
                state.attempts.push_back(attempt);
                if dialled.is_ok() {
                    state.endpoint = Some(endpoint.clone());
                }
            });
            match dialled {
                Ok(dialled) => {
                    if let Some(note) = &dialled.note {
                        self.log.note(&format!("remote {}: {note}", self.spec.name));
                        self.state
                            .send_modify(|state| state.note = Some(note.clone()));
                    }
                    return Ok(dialled);
                }
                Err(error) => failed.push((endpoint, error)),
            }
        }
        Err(RemoteError::of(&failed))
    }

    /// A connection leads to our own daemon.
    pub(super) fn is_own(&self, dialled: &Dialled) -> bool {
        dialled
            .boot
            .as_ref()
            .is_some_and(|boot| *boot == *self.boot)
    }

    /// What the last connection made known, once.
    pub(crate) fn take_note(&self) -> Option<String> {
        let mut note = None;
        self.state.send_if_modified(|state| {
            note = state.note.take();
            false
        });
        note
    }

    /// The link, made now if there is none; fails as soon as that fails, unless it
    /// broke a moment ago: such a way may fail twice.
    pub(crate) async fn link(&self) -> Result<Link, RemoteError> {
        let waiting = self.link_until(|state, before| {
            let is_fresh = state.broke.is_some_and(|at| at.elapsed() < FRESH);
            state.failed_rounds > before && (state.phase == RemoteState::Refused || !is_fresh)
        });
        match tokio::time::timeout(CONNECT, waiting).await {
            Ok(found) => found,
            Err(_) => Err(self.error()),
        }
    }

    /// The link, for a request that was under way when it broke: waits for long.
    pub(crate) async fn link_again(&self) -> Result<Link, RemoteError> {
        let waiting = self.link_until(|state, before| {
            state.failed_rounds > before && state.phase == RemoteState::Refused
        });
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => Err(self.error()),
        }
    }

    async fn link_until(&self, fails: impl Fn(&State, u64) -> bool) -> Result<Link, RemoteError> {
        // The link may be seen a moment longer.
        if self.gone.is_cancelled() {
            return Err(disconnected());
        }
        let mut state = self.state.subscribe();
        let before = state.borrow().failed_rounds;
        let mut told = false;
        loop {
            {
                let now = state.borrow_and_update();
                if let Some(link) = &now.link {
                    return Ok(link.clone());
                }
                // What was refused before may have been seen to.
                if told && fails(&now, before) {
                    return Err(now.error.clone().unwrap_or_else(unknown));
                }
            }
            if !std::mem::replace(&mut told, true) {
                self.wanted.notify_one();
            }
            tokio::select! {
                () = self.gone.cancelled() => return Err(disconnected()),
                changed = state.changed() => changed.map_err(|_| unknown())?,
            }
        }
    }

    fn error(&self) -> RemoteError {
        let error = self.state.borrow().error.clone();
        error.unwrap_or_else(unknown)
    }

    /// Sends a request on the link; `text` makes it of its tag.
    pub(crate) fn ask(
        &self,
        link: &Link,
        on_loss: OnLoss,
        text: impl FnOnce(u64) -> String,
    ) -> Exchange {
        let tag = self.new_tag();
        link.ask(tag, text(tag), on_loss)
    }

    /// A tag that no other request on a link has.
    pub(crate) fn new_tag(&self) -> u64 {
        self.tags.fetch_add(1, Ordering::Relaxed)
    }

    /// Room for one more request on the link. Those that last as long as cells do
    /// leave some to the others, `int` and `kill` among them.
    pub(crate) async fn room(&self, lasts: bool) -> Option<SemaphorePermit<'_>> {
        if lasts {
            return self.room.acquire().await.ok();
        }
        tokio::select! {
            biased;
            permit = self.room.acquire() => permit.ok(),
            permit = self.kept_room.acquire() => permit.ok(),
        }
    }

    /// Waits, unless it is disconnected meanwhile.
    pub(crate) async fn pause(&self, span: Duration) {
        tokio::select! {
            () = self.gone.cancelled() => {}
            () = tokio::time::sleep(span) => {}
        }
    }

    /// Ends the link for good, and all that is under way.
    pub(crate) fn disconnect(&self) {
        self.gone.cancel();
    }

    /// Waits until somebody disconnects it; gives what whoever uses it is told.
    pub(crate) async fn disconnected(&self) -> RemoteError {
        self.gone.cancelled().await;
        disconnected()
    }

    /// What is told of it.
    pub(crate) fn summary(&self) -> RemoteSummary {
        let state = self.state.borrow();
        RemoteSummary {
            name: self.spec.name.clone(),
            session: self.spec.session.clone(),
            endpoints: self
                .spec
                .endpoints
                .iter()
                .map(ToString::to_string)
                .collect(),
            tls: self.spec.tls,
            state: state.phase,
            endpoint: state.endpoint.clone(),
            protocol: state.spoken.map(|spoken| spoken.subprotocol().to_owned()),
            rtt_ms: state.round_trip.map(|span| span.as_secs_f64() * 1000.0),
            connections: state.connections,
            last_error: state.error.as_ref().map(|error| error.message.clone()),
            endpoint_attempts: state.attempts.iter().cloned().collect(),
            remote: None,
        }
    }
}

fn disconnected() -> RemoteError {
    RemoteError {
        hint: Some("its sessions go on; `pyctl connect` connects it again".to_owned()),
        ..RemoteError::new("it was disconnected")
    }
}

fn unknown() -> RemoteError {
    RemoteError::new("it is not connected")
}
