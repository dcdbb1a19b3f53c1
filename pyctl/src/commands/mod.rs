//! One file per command.

mod cert;
mod completions;
mod connect;
mod disconnect;
mod dispatch;
mod identity;
mod man;
mod pair;
mod pin;
mod restart;
mod start;
mod status;
mod stop;
mod token;
mod trust;
mod unpin;
mod untrust;
mod version;

pub(crate) use dispatch::dispatch;
