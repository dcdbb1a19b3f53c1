//! The heartbeat of a connection to a remote daemon: [`Pulse`] has the rule.

use pythond_transport::{PERIOD, Pulse, SILENCE, Silent};
use tokio::time::{Instant, Interval, interval, timeout};

use super::stream::Activity;

/// Looks at one connection.
pub(super) struct Heartbeat {
    activity: Activity,
    ticks: Interval,
    pulse: Pulse,
}

impl Heartbeat {
    /// For a connection that lives now. Its first tick comes at once.
    pub(super) fn new(activity: Activity) -> Self {
        Self {
            pulse: Pulse::new(Instant::now().into_std(), activity.traffic()),
            ticks: interval(PERIOD),
            activity,
        }
    }

    /// Nobody has listened until now, so what was not heard means nothing. The next
    /// tick comes after a whole period.
    pub(super) fn listen_anew(&mut self) {
        self.ticks.reset();
        self.pulse = Pulse::new(Instant::now().into_std(), self.activity.traffic());
    }

    /// Waits until it is time to look, and to ask.
    ///
    /// # Cancel safety
    /// No tick is lost.
    pub(super) async fn tick(&mut self) -> Instant {
        self.ticks.tick().await
    }

    /// Looks whether the other end lives.
    ///
    /// # Errors
    /// [`Silent`].
    pub(super) fn look(&mut self, now: Instant, is_sending: bool) -> Result<(), Silent> {
        let traffic = self.activity.traffic();
        self.pulse.look(now.into_std(), traffic, is_sending)
    }

    /// Waits for a message to leave, for as long as its bytes do.
    ///
    /// # Errors
    /// [`Silent::TookNothing`].
    pub(super) async fn sent<T>(&self, sending: impl Future<Output = T>) -> Result<T, Silent> {
        let mut sending = std::pin::pin!(sending);
        loop {
            let before = self.activity.traffic().went;
            match timeout(SILENCE, &mut sending).await {
                Ok(sent) => return Ok(sent),
                Err(_) if self.activity.traffic().went != before => {}
                Err(_) => return Err(Silent::TookNothing),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{advance, sleep};

    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Ticks until the other end is not there, at most for this time; `each` is what
    /// happens before each look.
    async fn silent_after(
        heartbeat: &mut Heartbeat,
        most: Duration,
        is_sending: bool,
        mut each: impl FnMut(),
    ) -> Option<(Silent, Duration)> {
        let began = Instant::now();
        while began.elapsed() <= most {
            let now = heartbeat.tick().await;
            each();
            if let Err(silent) = heartbeat.look(now, is_sending) {
                return Some((silent, now.duration_since(began)));
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_says_nothing_is_not_there() {
        let mut heartbeat = Heartbeat::new(Activity::default());
        let silent = silent_after(&mut heartbeat, seconds(60), false, || {}).await;
        assert_eq!(silent, Some((Silent::SaidNothing, SILENCE)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_says_something_is_there() {
        let activity = Activity::default();
        let mut heartbeat = Heartbeat::new(activity.clone());
        let silent = silent_after(&mut heartbeat, seconds(600), false, || activity.add_came(1));
        assert_eq!(silent.await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn while_we_send_it_is_there_as_long_as_it_takes_something() {
        let activity = Activity::default();
        let mut heartbeat = Heartbeat::new(activity.clone());
        let silent = silent_after(&mut heartbeat, seconds(600), true, || activity.add_went(1));
        assert_eq!(silent.await, None);
        // What it says then is no sign that it reads.
        let silent = silent_after(&mut heartbeat, seconds(60), true, || activity.add_came(1));
        let silent = silent.await.map(|(silent, _)| silent);
        assert_eq!(silent, Some(Silent::TookNothing));
    }

    #[tokio::test(start_paused = true)]
    async fn while_nobody_listens_nothing_can_be_heard() {
        let mut heartbeat = Heartbeat::new(Activity::default());
        advance(seconds(600)).await;
        heartbeat.listen_anew();
        let silent = silent_after(&mut heartbeat, seconds(60), false, || {}).await;
        assert_eq!(silent, Some((Silent::SaidNothing, SILENCE)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_may_take_long_if_it_moves() {
        let activity = Activity::default();
        let heartbeat = Heartbeat::new(activity.clone());
        let slow = async {
            for _ in 0..100 {
                sleep(SILENCE * 2 / 3).await;
                activity.add_went(1);
            }
            7
        };
        assert_eq!(heartbeat.sent(slow).await, Ok(7));
        let stuck = std::future::pending::<()>();
        let began = Instant::now();
        assert_eq!(heartbeat.sent(stuck).await, Err(Silent::TookNothing));
        assert_eq!(began.elapsed(), SILENCE);
    }
}
