//! What a session may make a person's terminal do.
//!
//! Two policies. [`ScreenFilter`] is for an attached terminal: what draws
//! passes, what asks, answers, or reaches beyond the screen does not.
//! [`Visible`] is for output that is only shown: colours pass, all else becomes
//! readable. Bytes in, bytes out; no I/O. Knows nothing of the rest of the
//! program, so that the fuzz target can take it as it is.

mod allowed;
mod filter;
mod modes;
mod visible;

pub(crate) use filter::ScreenFilter;
pub(crate) use modes::Modes;
pub(crate) use visible::Visible;
