//! What threads and processes do at the same time, in any order.

mod cells;
mod journal;

/// How often a model is tried: more often where time does not matter.
fn rounds(usual: usize) -> usize {
    match std::env::var_os("PYTHOND_TORTURE") {
        Some(_) => 50 * usual,
        None => usual,
    }
}
