//! The clock that nobody can set and that goes on while the machine sleeps.

use std::time::Duration;

use rustix::time::ClockId;

/// How long ago the machine came up.
pub(crate) fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}
