//! The daemon: accepts, routes, logs and supervises. It never loads Python and
//! never runs user code.
//!
//! Calls go listener → router → handlers → registry → session → host process;
//! answers return only by channel. No module names one to its left.
#![forbid(unsafe_code)]

mod access_log;
mod admission;
mod adoption;
pub mod bridge;
mod complaints;
pub mod config;
pub mod daemon;
pub mod daemon_limits;
pub mod detach;
mod environment;
mod error;
mod events;
mod exits;
mod guard;
mod handlers;
mod handover;
mod host_process;
mod hosts;
mod lane_io;
mod listener;
mod litter;
mod log;
mod log_file;
pub mod network;
mod peer;
mod registry;
mod remote;
mod router;
mod session;
pub mod settings;
mod supervisor;
mod terminal;
mod tombstones;
mod zygote;
mod zygotes;
