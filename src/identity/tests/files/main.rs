//! What is kept in files: made, read, damaged, changed, noticed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod own;
mod pins;
mod support;
mod token;
mod trusted;
mod watch;
