//! Daemons of other machines whose sessions look as if they were here.
//!
//! A request for one of them is passed on as it is, under a tag of ours, on one
//! connection for each remote; it is sent again by its key when that breaks.

mod attach;
mod dial;
mod earlier;
mod endpoint;
mod error;
mod forward;
mod heartbeat;
mod link;
mod names;
mod own;
#[expect(clippy::module_inception, reason = "one of them, beside all of them")]
mod remote;
mod request;
mod spec;
mod status;
mod stream;
mod table;

pub(crate) use attach::{AttachedRemote, FromRemote};
pub(crate) use dial::set_most_answer;
pub(crate) use forward::forward;
pub(crate) use remote::Remote;
pub(crate) use request::Routed;
pub(crate) use spec::RemoteSpec;
pub(crate) use table::Remotes;
