//! A file as memory that several processes share.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// A file mapped shared, seen as atomics, so that any process may read what
/// another left there.
#[derive(Debug)]
pub(crate) struct SharedMap {
    start: *mut u8,
    length: usize,
    /// The pages that are known to be there, a bit each.
    there: AtomicU64,
}

/// Bytes of a page; more where pages are greater.
const PAGE: usize = 4096;

// SAFETY: the memory is only reached through atomics.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps the first `length` bytes of a file that has at least as many.
    pub(crate) fn new(file: impl AsFd, length: usize) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice;
        // the file is ours alone (private_fs) and never made shorter.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            length,
            there: AtomicU64::new(0),
        })
    }

    /// Sees to it that these bytes can be reached. False if the file system has
    /// no room for them: a mere look would end the process then (SIGBUS).
    pub(crate) fn reserve(&self, at: usize, length: usize) -> bool {
        assert!(at + length <= self.length, "inside the map");
        let pages = at / PAGE..(at + length).div_ceil(PAGE);
        // Later pages than there are bits are looked at each time.
        let bits = pages.clone().filter(|page| *page < 64);
        let bits = bits.fold(0, |bits, page| bits | 1 << page);
        if pages.end <= 64 && self.there.load(Relaxed) & bits == bits {
            return true;
        }
        // SAFETY: inside the mapping, as just checked; it begins at a page.
        let place = unsafe { self.start.add(pages.start * PAGE) };
        let length = pages.len() * PAGE;
        // SAFETY: changes no byte; a range that is not mapped is an error.
        let status = unsafe { libc::madvise(place.cast(), length, libc::MADV_POPULATE_WRITE) };
        // Linux before 5.14 cannot tell.
        let old = || io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL);
        let there = status == 0 || old();
        if there {
            self.there.fetch_or(bits, Relaxed);
        }
        there
    }

    /// The 8-byte word that begins at byte `at`, a multiple of 8.
    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.length,
            "inside the map"
        );
        // SAFETY: inside the mapping, as just checked.
        let place = unsafe { self.start.add(at) };
        // SAFETY: aligned (maps begin at a page), mapped as long as `self`,
        // only ever reached as an atomic.
        unsafe { AtomicU64::from_ptr(place.cast()) }
    }

    /// Writes bytes at `at`. Other processes may read them once this one is
    /// dead; nobody does before.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length, "inside the map");
        // SAFETY: inside the mapping, as just checked.
        let place = unsafe { self.start.add(at) };
        // SAFETY: `bytes` cannot overlap the mapping, which no reference of
        // this process points into; writers are serialised by their caller.
        // Byte-wise atomics would make long outputs ten times slower.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// Lends the bytes from `at` on, which nobody else may reach meanwhile: other
    /// processes read them once this one is dead, threads are serialised by the
    /// caller.
    pub(crate) fn with_bytes<T>(
        &self,
        at: usize,
        length: usize,
        use_them: impl FnOnce(&mut [u8]) -> T,
    ) -> T {
        assert!(at + length <= self.length, "inside the map");
        // SAFETY: inside the mapping, as just checked.
        let place = unsafe { self.start.add(at) };
        // SAFETY: mapped as long as `self`; nobody else reaches it, as said above.
        use_them(unsafe { std::slice::from_raw_parts_mut(place, length) })
    }

    /// The bytes from `at` on.
    pub(crate) fn bytes(&self, at: usize, length: usize) -> &[AtomicU8] {
        assert!(at + length <= self.length, "inside the map");
        // SAFETY: inside the mapping, as just checked.
        let place = unsafe { self.start.add(at) };
        // SAFETY: mapped as long as `self`, `AtomicU8` has the layout of `u8`,
        // only ever reached as atomics.
        unsafe { std::slice::from_raw_parts(place.cast(), length) }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing borrows it any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}
