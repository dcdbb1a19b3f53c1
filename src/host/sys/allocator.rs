//! Memory for our own work, Python's apart: where a session's limit of memory is
//! used up, it comes from the reserve (`limits.rs`), as to fail would end the
//! process.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::limits;

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Asks again with the reserve, where there is one and it is not open yet.
fn insist(ask: impl Fn() -> *mut u8) -> *mut u8 {
    let memory = ask();
    if !memory.is_null() || limits::is_reserve_open() || !limits::set_reserve(true) {
        return memory;
    }
    let memory = ask();
    if !limits::is_reserve_open() {
        limits::set_reserve(false);
    }
    memory
}

// SAFETY: everything is the system's allocator's, asked a second time where it
// had nothing to give; setting a limit allocates nothing. There is no safe way
// to say where memory comes from.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's own promise on the layout.
        insist(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's own promise on the layout.
        insist(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: what is given back came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's own promises; a block whose realloc failed is as
        // it was and can be asked for again.
        insist(|| unsafe { System.realloc(pointer, layout, size) })
    }
}
