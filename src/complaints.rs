//! How often the same complaint is told. A flood of them costs a few lines a
//! second and a count of what was left out.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// So many of a kind are told in each [`SPAN`].
const MOST: u32 = 20;
/// How long a count lasts.
const SPAN: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Count {
    since: Instant,
    told: u32,
    left_out: u64,
}

/// What was complained of lately, by kind.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    counts: Mutex<BTreeMap<&'static str, Count>>,
    /// Something was left out.
    left_out: Notify,
}

impl Complaints {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<&'static str, Count>> {
        // Numbers are whole at every moment.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more of a kind is to be told. If not it is counted.
    pub(crate) fn tells(&self, kind: &'static str) -> bool {
        self.tells_at(kind, Instant::now())
    }

    fn tells_at(&self, kind: &'static str, now: Instant) -> bool {
        let mut counts = self.counts();
        let count = counts.entry(kind).or_insert(Count {
            since: now,
            told: 0,
            left_out: 0,
        });
        // What was left out is told before the next one.
        if count.left_out == 0 && now.duration_since(count.since) >= SPAN {
            count.since = now;
            count.told = 0;
        }
        if count.told < MOST {
            count.told += 1;
            return true;
        }
        count.left_out += 1;
        if count.left_out == 1 {
            self.left_out.notify_one();
        }
        false
    }

    /// Waits until it is time to say what was left out, and gives the counts.
    /// For one waiter.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn left_out(&self) -> Vec<(&'static str, u64)> {
        loop {
            match self.next_due() {
                None => self.left_out.notified().await,
                Some(at) => {
                    tokio::time::sleep_until(at).await;
                    let due = self.due_at(at);
                    if !due.is_empty() {
                        return due;
                    }
                }
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let counts = self.counts();
        let waiting = counts.values().filter(|count| count.left_out > 0);
        waiting.map(|count| count.since + SPAN).min()
    }

    fn due_at(&self, now: Instant) -> Vec<(&'static str, u64)> {
        let mut counts = self.counts();
        let due = counts
            .iter_mut()
            .filter(|(_, count)| count.left_out > 0 && now.duration_since(count.since) >= SPAN);
        due.map(|(kind, count)| {
            count.since = now;
            count.told = 0;
            (*kind, std::mem::take(&mut count.left_out))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_in_part_and_the_rest_is_counted() {
        let complaints = Complaints::default();
        let now = Instant::now();
        let flood = |now| {
            (0..1000)
                .filter(|_| complaints.tells_at("busy", now))
                .count()
        };
        assert_eq!(flood(now), 20);
        assert!(complaints.tells_at("accept", now));
        assert!(complaints.due_at(now).is_empty());
        // The count comes before more of the same.
        assert_eq!(flood(now + SPAN), 0);
        assert_eq!(complaints.due_at(now + SPAN), [("busy", 1980)]);
        assert_eq!(flood(now + SPAN), 20);
        assert_eq!(complaints.due_at(now + SPAN * 2), [("busy", 980)]);
        assert!(complaints.due_at(now + SPAN * 3).is_empty());
    }
}
