//! A session: its state, the task that owns it, the way to reach it.

mod actor;
mod death;
mod fate;
mod handle;
mod question;
pub(crate) mod state;
mod unreached;
mod watch;

pub(crate) use actor::{Connected, start};
pub(crate) use death::bury;
pub(crate) use handle::{
    Accepted, EndReason, LastOutput, Resent, RunAnswer, SessionHandle, Submission, Submit,
};
pub(crate) use question::{OutputRange, Question};
pub(crate) use unreached::Unreached;
