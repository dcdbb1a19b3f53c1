//! The one code that may be valid: who opened it, how often it was tried wrongly, and
//! what came of it. Knows no sockets.
//!
//! A try is looked at under the lock of the code, one after another, so that no number
//! of connections has more tries than there are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pythond_pairing::Code;
use pythond_protocol::verbs::pair::PairedClient;
use tokio::sync::mpsc;

use super::penalties::{Penalties, Source};

/// How many wrong tries end a code.
pub(crate) const TRIES: u32 = 3;

/// What whoever opened the code hears.
#[derive(Debug)]
pub(crate) enum News {
    /// A wrong try, from there; how many are left.
    Wrong { address: String, tries_left: u32 },
    /// The last step with a client that knew it has failed, for this reason.
    Failed(String),
    /// A client is trusted now.
    Paired(PairedClient),
}

/// All news fit: so many wrong tries, and one end.
const NEWS: usize = TRIES as usize + 1;

/// What a try was worth.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The code is used up, and whoever opened it is to hear the rest.
    Right(Opener),
    /// So many tries are left.
    Wrong { tries_left: u32 },
    /// Nobody looked: so many wrong tokens and codes came from there.
    NotHeard,
    /// No code is valid, or it is another.
    Closed,
}

/// Whoever opened a code that was used. Is told of an end by the drop of this, too: an
/// exchange can be cut off at any moment.
#[derive(Debug)]
pub(crate) struct Opener {
    news: mpsc::Sender<News>,
    /// What is to be told then.
    unfinished: Option<&'static str>,
}

impl Opener {
    fn new(news: mpsc::Sender<News>) -> Self {
        let unfinished = Some("the connection was ended before it was done");
        Self { news, unfinished }
    }

    /// Still wants somebody to be paired.
    pub(crate) fn waits(&self) -> bool {
        !self.news.is_closed()
    }

    /// From now on the client may be trusted, whatever comes.
    pub(crate) fn begins_to_trust(&mut self) {
        self.unfinished = Some(
            "the connection was ended before it was done; the client may be trusted all the \
             same, which `pyctl trust` shows",
        );
    }

    /// Tells the end.
    pub(crate) fn tell(mut self, news: News) {
        self.unfinished = None;
        // There is room; one who went away hears nothing.
        let _ = self.news.try_send(news);
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        if let Some(why) = self.unfinished {
            let _ = self.news.try_send(News::Failed(why.to_owned()));
        }
    }
}

#[derive(Debug)]
struct Valid {
    number: u64,
    code: Code,
    tries_left: u32,
    news: mpsc::Sender<News>,
}

#[derive(Debug, Default)]
struct State {
    /// Codes so far.
    opened: u64,
    valid: Option<Valid>,
    /// One was used and its opener still waits for the end.
    in_use: Option<mpsc::Sender<News>>,
}

/// The place of the code.
#[derive(Debug, Default)]
pub(crate) struct Pairing(Mutex<State>);

/// A code that is valid until it is used, tried too often, or this is dropped.
pub(crate) struct OpenCode {
    pairing: Arc<Pairing>,
    number: u64,
    news: mpsc::Receiver<News>,
}

/// A code as it is for one exchange.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) code: Code,
    number: u64,
}

impl Pairing {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a code valid; none if there is one already, or one is being used.
    pub(crate) fn open(self: &Arc<Self>, code: Code) -> Option<OpenCode> {
        let mut state = self.state();
        let is_used = state.in_use.as_ref().is_some_and(|it| !it.is_closed());
        if state.valid.is_some() || is_used {
            return None;
        }
        let (sender, news) = mpsc::channel(NEWS);
        state.opened += 1;
        let number = state.opened;
        state.valid = Some(Valid {
            number,
            code,
            tries_left: TRIES,
            news: sender,
        });
        Some(OpenCode {
            pairing: Arc::clone(self),
            number,
            news,
        })
    }

    /// Whether a code is valid now.
    pub(crate) fn is_open(&self) -> bool {
        self.state().valid.is_some()
    }

    /// The code that is valid now.
    pub(crate) fn current(&self) -> Option<Current> {
        let state = self.state();
        let valid = state.valid.as_ref()?;
        Some(Current {
            code: valid.code.clone(),
            number: valid.number,
        })
    }

    /// Looks whether somebody knows the code. It is used up by that.
    pub(crate) fn judge(
        &self,
        current: &Current,
        penalties: &Penalties,
        source: Source,
        address: &str,
        is_right: impl FnOnce() -> bool,
    ) -> Verdict {
        let mut state = self.state();
        let Some(valid) = &mut state.valid else {
            return Verdict::Closed;
        };
        if valid.number != current.number {
            return Verdict::Closed;
        }
        match penalties.judge(source, is_right) {
            None => Verdict::NotHeard,
            Some(true) => {
                let news = valid.news.clone();
                state.valid = None;
                state.in_use = Some(news.clone());
                Verdict::Right(Opener::new(news))
            }
            Some(false) => {
                valid.tries_left -= 1;
                let tries_left = valid.tries_left;
                // There is room; one who went away hears nothing.
                let _ = valid.news.try_send(News::Wrong {
                    address: address.to_owned(),
                    tries_left,
                });
                if tries_left == 0 {
                    state.valid = None;
                }
                Verdict::Wrong { tries_left }
            }
        }
    }
}

impl OpenCode {
    /// What happens next; none if nothing can any more.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn news(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// Ends the code; false if that is too late, as somebody has just used it.
    pub(crate) fn withdraw(&self) -> bool {
        let mut state = self.pairing.state();
        let is_ours = |valid: &Valid| valid.number == self.number;
        if state.valid.as_ref().is_some_and(is_ours) {
            state.valid = None;
            return true;
        }
        state.in_use.as_ref().is_none_or(mpsc::Sender::is_closed)
    }
}

impl Drop for OpenCode {
    fn drop(&mut self) {
        self.withdraw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source::of("10.0.0.5".parse().unwrap())
    }

    fn code() -> Code {
        "1234-5678".parse().unwrap()
    }

    #[test]
    fn one_code_at_a_time_and_each_only_once() {
        let (pairing, penalties) = (Arc::<Pairing>::default(), Penalties::default());
        assert!(!pairing.is_open());
        let open = pairing.open(code()).unwrap();
        assert!(pairing.open(code()).is_none());
        let current = pairing.current().unwrap();
        let right = pairing.judge(&current, &penalties, source(), "a", || true);
        let Verdict::Right(opener) = right else {
            panic!("{right:?}")
        };
        assert!(opener.waits());
        // It is used up, and whoever opened it is not done.
        assert!(!pairing.is_open() && pairing.open(code()).is_none());
        let again = pairing.judge(&current, &penalties, source(), "a", || true);
        assert!(matches!(again, Verdict::Closed), "{again:?}");
        assert!(!open.withdraw());
        drop(open);
        assert!(!opener.waits());
        let next = pairing.open(code()).unwrap();
        let late = pairing.judge(&current, &penalties, source(), "a", || true);
        assert!(matches!(late, Verdict::Closed), "{late:?}");
        drop(next);
        assert!(!pairing.is_open());
    }

    #[test]
    fn who_is_cut_off_is_told_of_once() {
        let (pairing, penalties) = (Arc::<Pairing>::default(), Penalties::default());
        for (trusts, told) in [(false, "ended before it was done"), (true, "`pyctl trust`")] {
            let mut open = pairing.open(code()).unwrap();
            let current = pairing.current().unwrap();
            let right = pairing.judge(&current, &penalties, source(), "a", || true);
            let Verdict::Right(mut opener) = right else {
                panic!("{right:?}")
            };
            if trusts {
                opener.begins_to_trust();
            }
            drop(opener);
            let news = open.news.try_recv().unwrap();
            assert!(
                matches!(&news, News::Failed(why) if why.contains(told)),
                "{news:?}"
            );
            let more = open.news.try_recv();
            assert!(more.is_err(), "{more:?}");
        }
    }

    #[test]
    fn many_tries_at_one_moment_are_no_more() {
        let pairing = Arc::<Pairing>::default();
        let mut open = pairing.open(code()).unwrap();
        let looked_at = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for number in 0..16 {
                let (pairing, looked_at) = (&pairing, &looked_at);
                scope.spawn(move || {
                    // Each comes from somewhere else.
                    let penalties = Penalties::default();
                    let source = Source::V4([10, 0, 0, number]);
                    while let Some(current) = pairing.current() {
                        let look = || {
                            looked_at.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            std::thread::yield_now();
                            false
                        };
                        pairing.judge(&current, &penalties, source, "a", look);
                    }
                });
            }
        });
        assert_eq!(looked_at.into_inner(), TRIES);
        for left in (0..TRIES).rev() {
            let news = open.news.try_recv().unwrap();
            assert!(matches!(news, News::Wrong { tries_left, .. } if tries_left == left));
        }
        // Nothing can come any more.
        let end = open.news.try_recv();
        assert_eq!(end.unwrap_err(), mpsc::error::TryRecvError::Disconnected);
    }

    #[test]
    fn who_is_not_heard_uses_up_no_try() {
        let (pairing, penalties) = (Arc::<Pairing>::default(), Penalties::default());
        while penalties.judge(source(), || false).is_some() {}
        let _open = pairing.open(code()).unwrap();
        let current = pairing.current().unwrap();
        for _ in 0..2 * TRIES {
            let verdict = pairing.judge(&current, &penalties, source(), "a", || false);
            assert!(matches!(verdict, Verdict::NotHeard), "{verdict:?}");
        }
        assert!(pairing.is_open());
    }
}
