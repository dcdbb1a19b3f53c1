//! What is written, damaged and read back.

mod append;
mod cell_log;
mod journal;
