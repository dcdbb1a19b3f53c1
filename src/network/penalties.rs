//! How many wrong tokens one source may send. Knows no sockets.
//!
//! Each wrong token costs its source some seconds; while it owes too many, none of
//! its tokens is looked at. Whoever has a trusted certificate is a source of its
//! own, so that nobody else can keep it out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pythond_identity::CertificateFingerprint;
use tokio::time::Instant;

/// What a wrong token costs.
const COST: Duration = Duration::from_secs(5);
/// A source that owes more is not heard: ten wrong tokens at once, then one in
/// each [`COST`].
const MOST: Duration = Duration::from_secs(45);
/// Most sources that are remembered.
const SOURCES: usize = 10_000;

/// Whom a wrong token is put down to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// An IPv4 address.
    V4([u8; 4]),
    /// What one subscriber usually has of IPv6: 64 bits.
    V6([u8; 8]),
    /// A client that is trusted.
    Client(CertificateFingerprint),
}

impl Source {
    /// Of a client without a trusted certificate.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let mut prefix = [0; 8];
                prefix.copy_from_slice(&address.octets()[..8]);
                Self::V6(prefix)
            }
        }
    }
}

/// What each source owes.
#[derive(Debug, Default)]
pub(crate) struct Penalties {
    /// When it will owe nothing any more.
    free_at: Mutex<Table>,
}

impl Penalties {
    /// Whether a source is heard now.
    pub(crate) fn hear(&self, source: Source) -> bool {
        hear_at(&self.table(), source, Instant::now())
    }

    /// Whether what a source shows is right; none if it is not heard now, and then
    /// nobody looks. Many tries at one moment are looked at one after another, so
    /// that none is beyond what is allowed.
    pub(crate) fn judge(&self, source: Source, is_right: impl FnOnce() -> bool) -> Option<bool> {
        self.judge_at(source, is_right, Instant::now())
    }

    fn judge_at(
        &self,
        source: Source,
        is_right: impl FnOnce() -> bool,
        now: Instant,
    ) -> Option<bool> {
        let mut table = self.table();
        if !hear_at(&table, source, now) {
            return None;
        }
        let is_right = is_right();
        if !is_right {
            wrong_at(&mut table, source, now);
        }
        Some(is_right)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        // Each change leaves it whole.
        self.free_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Table = HashMap<Source, Instant>;

fn hear_at(table: &Table, source: Source, now: Instant) -> bool {
    let free_at = table.get(&source);
    free_at.is_none_or(|free_at| free_at.duration_since(now) <= MOST)
}

fn wrong_at(table: &mut Table, source: Source, now: Instant) {
    if table.len() >= SOURCES && !table.contains_key(&source) {
        table.retain(|_, free_at| *free_at > now);
        if table.len() >= SOURCES {
            forget_least(table);
        }
    }
    let free_at = table.entry(source).or_insert(now);
    *free_at = (*free_at).max(now) + COST;
}

/// Forgets those that owe least: many at once, as looking for them takes its time.
fn forget_least(table: &mut Table) {
    let mut debts: Vec<Instant> = table.values().copied().collect();
    let mut to_go = debts.len() / 4;
    let (_, most, _) = debts.select_nth_unstable(to_go);
    let most = *most;
    table.retain(|_, free_at| {
        let goes = to_go > 0 && *free_at <= most;
        to_go -= usize::from(goes);
        !goes
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    #[test]
    fn ten_tries_and_then_one_in_a_while() {
        let penalties = Penalties::default();
        let (guesser, other) = (source("10.0.0.5"), source("10.0.0.6"));
        let mut now = Instant::now();
        let mut tries = |seconds: u64| {
            let mut heard = 0;
            for _ in 0..seconds * 100 {
                if penalties.judge_at(guesser, || false, now).is_some() {
                    heard += 1;
                }
                now += Duration::from_millis(10);
            }
            assert_eq!(penalties.judge_at(other, || true, now), Some(true));
            heard
        };
        assert_eq!(tries(3), 10);
        assert_eq!(tries(100), 20);
    }

    #[test]
    fn many_tries_at_one_moment_are_no_more() {
        let penalties = Penalties::default();
        let guesser = source("10.0.0.5");
        let looked_at = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let look = || {
                        looked_at.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        std::thread::yield_now();
                        false
                    };
                    while penalties.judge(guesser, look).is_some() {}
                });
            }
        });
        assert_eq!(looked_at.into_inner(), 10);
    }

    #[test]
    fn addresses_of_one_subscriber_are_one_source() {
        assert_eq!(source("::ffff:10.0.0.5"), source("10.0.0.5"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    }

    #[test]
    fn many_sources_take_bounded_room_and_the_worst_stays() {
        let penalties = Penalties::default();
        let now = Instant::now();
        let worst = source("192.0.2.1");
        for _ in 0..10 {
            penalties.judge_at(worst, || false, now);
        }
        for number in 0..2 * u32::try_from(SOURCES).unwrap() {
            penalties.judge_at(Source::V4(number.to_be_bytes()), || false, now);
        }
        let remembered = penalties.table().len();
        assert!(
            (SOURCES / 2..=SOURCES).contains(&remembered),
            "{remembered}"
        );
        assert_eq!(penalties.judge_at(worst, || true, now), None);
    }
}
