//! Whether the other end of a connection still lives: as long as bytes come, or go
//! while some are to go, it does. Whoever has the connection asks it now and then.

use std::fmt;
use std::time::{Duration, Instant};

/// How often the other end is asked whether it is there.
pub const PERIOD: Duration = Duration::from_secs(5);
/// No byte for so long, and the other end is not there.
pub const SILENCE: Duration = Duration::from_secs(20);

/// The other end of a connection is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silent {
    /// Nothing came.
    SaidNothing,
    /// Something was to go, and nothing went.
    TookNothing,
}

impl fmt::Display for Silent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::SaidNothing => "said",
            Self::TookNothing => "taken",
        };
        write!(
            formatter,
            "it has {word} nothing for {} s",
            SILENCE.as_secs()
        )
    }
}

impl std::error::Error for Silent {}

/// Bytes that came and went on a connection so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From the other end.
    pub came: u64,
    /// Taken from us by the kernel.
    pub went: u64,
}

/// Signs of life of one connection.
#[derive(Debug)]
pub struct Pulse {
    /// Bytes that came, and when it was last seen that some did; while a message of
    /// ours was leaving, they could not.
    came: (u64, Instant),
    /// The same of those that went; while none were to go, they might have.
    went: (u64, Instant),
}

impl Pulse {
    /// Of a connection that lives now.
    #[must_use]
    pub fn new(now: Instant, traffic: Traffic) -> Self {
        Self {
            came: (traffic.came, now),
            went: (traffic.went, now),
        }
    }

    /// Looks whether the other end lives. While a message of ours is leaving, it
    /// holds our question up, and so the answer: only that it is taken counts then.
    ///
    /// # Errors
    /// [`Silent`].
    pub fn look(&mut self, now: Instant, traffic: Traffic, is_sending: bool) -> Result<(), Silent> {
        if traffic.came != self.came.0 || is_sending {
            self.came = (traffic.came, now);
        }
        if traffic.went != self.went.0 || !is_sending {
            self.went = (traffic.went, now);
        }
        if now.duration_since(self.went.1) >= SILENCE {
            Err(Silent::TookNothing)
        } else if now.duration_since(self.came.1) >= SILENCE {
            Err(Silent::SaidNothing)
        } else {
            Ok(())
        }
    }
}

/// Looks at a connection whose owner polls.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    pulse: Pulse,
    due: Instant,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// The other end is to be asked now whether it is there.
    pub(crate) asks: bool,
    /// When to look again.
    pub(crate) next: Instant,
}

impl Heartbeat {
    /// For a connection that lives now.
    pub(crate) fn new(now: Instant, traffic: Traffic) -> Self {
        Self {
            pulse: Pulse::new(now, traffic),
            due: now + PERIOD,
        }
    }

    /// Looks, if it is time to. Whoever comes a whole period late has not listened
    /// meanwhile, so what was not heard means nothing.
    ///
    /// # Errors
    /// [`Silent`].
    pub(crate) fn look(
        &mut self,
        now: Instant,
        traffic: Traffic,
        is_sending: bool,
    ) -> Result<Look, Silent> {
        let asks = now >= self.due;
        if asks {
            if now >= self.due + PERIOD {
                self.pulse = Pulse::new(now, traffic);
            }
            self.pulse.look(now, traffic, is_sending)?;
            self.due = now + PERIOD;
        }
        Ok(Look {
            asks: asks && !is_sending,
            next: self.due,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks each period, for so many seconds; when the other end is not there, and
    /// why.
    fn silent_after(
        heartbeat: &mut Heartbeat,
        begin: Instant,
        seconds: u64,
        is_sending: bool,
        mut traffic: impl FnMut(u64) -> Traffic,
    ) -> Option<(Silent, u64)> {
        let mut asked = 0;
        for second in 0..=seconds {
            let now = begin + Duration::from_secs(second);
            match heartbeat.look(now, traffic(second), is_sending) {
                Ok(look) => asked += u64::from(look.asks),
                Err(silent) => return Some((silent, second)),
            }
        }
        assert_eq!(asked, if is_sending { 0 } else { seconds / 5 });
        None
    }

    const NONE: Traffic = Traffic { came: 0, went: 0 };

    #[test]
    fn one_that_says_nothing_is_not_there() {
        let begin = Instant::now();
        let mut heartbeat = Heartbeat::new(begin, NONE);
        let silent = silent_after(&mut heartbeat, begin, 60, false, |_| NONE);
        assert_eq!(silent, Some((Silent::SaidNothing, 20)));
    }

    #[test]
    fn one_that_says_something_is_there() {
        let begin = Instant::now();
        let mut heartbeat = Heartbeat::new(begin, NONE);
        let says = |second| Traffic {
            came: second / 15,
            went: 0,
        };
        let silent = silent_after(&mut heartbeat, begin, 600, false, says);
        assert_eq!(silent, None);
    }

    #[test]
    fn while_we_send_it_is_there_as_long_as_it_takes_something() {
        let begin = Instant::now();
        let mut heartbeat = Heartbeat::new(begin, NONE);
        let takes = |second| Traffic {
            came: 0,
            went: second / 15,
        };
        let silent = silent_after(&mut heartbeat, begin, 600, true, takes);
        assert_eq!(silent, None);
        // What it says then is no sign that it reads.
        let begin = begin + Duration::from_secs(601);
        let says = |second| Traffic {
            came: second,
            went: 40,
        };
        let silent = silent_after(&mut heartbeat, begin, 60, true, says);
        assert!(
            matches!(silent, Some((Silent::TookNothing, _))),
            "{silent:?}"
        );
    }

    #[test]
    fn one_that_took_something_long_has_time_to_answer() {
        let begin = Instant::now();
        let mut heartbeat = Heartbeat::new(begin, NONE);
        let takes = |second| Traffic {
            came: 0,
            went: second,
        };
        assert_eq!(silent_after(&mut heartbeat, begin, 100, true, takes), None);
        let begin = begin + Duration::from_secs(100);
        let silent = silent_after(&mut heartbeat, begin, 60, false, |_| takes(100));
        assert_eq!(silent, Some((Silent::SaidNothing, 20)));
    }

    #[test]
    fn while_nobody_listens_nothing_can_be_heard() {
        let begin = Instant::now();
        let mut heartbeat = Heartbeat::new(begin, NONE);
        let later = begin + Duration::from_secs(600);
        let look = heartbeat.look(later, NONE, false);
        assert_eq!(
            look,
            Ok(Look {
                asks: true,
                next: later + PERIOD
            })
        );
        let silent = silent_after(&mut heartbeat, later, 60, false, |_| NONE);
        assert_eq!(silent, Some((Silent::SaidNothing, 20)));
    }
}
