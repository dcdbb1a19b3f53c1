//! The host's map of a file, with a place before each access where a model may go
//! on with another thread.

#[path = "../sys/shared_map.rs"]
#[expect(unsafe_code, reason = "the file belongs to the host's `sys`")]
mod shared_map;

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// What happens before each access.
    pub(crate) static BEFORE_ACCESS: Cell<fn()> = const { Cell::new(|| {}) };
}

/// Bytes that a model writes at once: what is between two accesses is not cut.
const PIECE: usize = 4096;

fn before_access() {
    BEFORE_ACCESS.get()();
}

#[derive(Debug)]
pub(crate) struct SharedMap(shared_map::SharedMap);

impl SharedMap {
    pub(crate) fn new(file: impl AsFd, length: usize) -> io::Result<Self> {
        shared_map::SharedMap::new(file, length).map(Self)
    }

    pub(crate) fn word(&self, at: usize) -> Word<'_> {
        Word(self.0.word(at))
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        for (number, piece) in bytes.chunks(PIECE).enumerate() {
            before_access();
            self.0.write(at + number * PIECE, piece);
        }
    }

    pub(crate) fn with_bytes<T>(
        &self,
        at: usize,
        length: usize,
        use_them: impl FnOnce(&mut [u8]) -> T,
    ) -> T {
        before_access();
        self.0.with_bytes(at, length, use_them)
    }
}

impl Deref for SharedMap {
    type Target = shared_map::SharedMap;

    fn deref(&self) -> &Self::Target {
        before_access();
        &self.0
    }
}

/// One word of it.
pub(crate) struct Word<'a>(&'a AtomicU64);

impl Word<'_> {
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        before_access();
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        before_access();
        self.0.store(value, order);
    }

    pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
        before_access();
        self.0.swap(value, order)
    }

    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        before_access();
        self.0.fetch_add(value, order)
    }
}

/// No thread of the host runs here.
pub(crate) fn block_all_signals() {}
