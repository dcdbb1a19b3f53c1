//! What is written, damaged and read back.

mod adoption;
mod append;
mod cell_log;
mod cells;
mod journal;
mod typing;
