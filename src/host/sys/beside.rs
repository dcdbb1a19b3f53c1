//! Forks a process that has other threads, and what that takes: libraries whose
//! own threads and locks are in the way, descriptors, memory.

use std::ffi::{CStr, CString, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::path::Path;

use pyo3::prelude::*;

use super::Fork;

/// Forks a process in which other threads run. `prepare` is called between
/// Python's own preparations and the fork: its result belongs to both.
///
/// Only this thread is in the child, which must not touch a lock that another
/// thread could have held.
pub(crate) fn fork_beside<T>(
    _py: Python<'_>,
    prepare: impl FnOnce() -> io::Result<T>,
) -> io::Result<(Fork, T)> {
    // SAFETY: the caller is attached, as the token proves.
    unsafe { pyo3::ffi::PyOS_BeforeFork() };
    let prepared = prepare();
    let quiet = prepared.is_ok().then(QuietLibraries::new);
    let pid = if prepared.is_ok() {
        // SAFETY: the C library puts its own locks in order; CPython's are in
        // order as this thread holds the interpreter; of ours the child touches
        // none (fork.rs). No safe wrapper exists.
        unsafe { libc::fork() }
    } else {
        -1
    };
    if pid == 0 {
        if let Some(quiet) = quiet {
            quiet.settle_in_child();
        }
        // SAFETY: attached, in the child, exactly once after `BeforeFork`.
        unsafe { pyo3::ffi::PyOS_AfterFork_Child() };
        return Ok((Fork::Child, prepared?));
    }
    let error = io::Error::last_os_error();
    if let Some(quiet) = quiet {
        quiet.restore();
    }
    // SAFETY: attached, in the parent, exactly once after `BeforeFork`.
    unsafe { pyo3::ffi::PyOS_AfterFork_Parent() };
    let prepared = prepared?;
    if pid < 0 {
        Err(error)
    } else {
        Ok((Fork::Parent(pid), prepared))
    }
}

/// OpenBLAS ends its threads before each fork. If one of them works for another
/// thread just then, either that thread or the fork waits for ever, or memory
/// in use is given away. So the function that does it returns at once while we
/// fork.
struct QuietLibraries {
    found: Vec<QuietLibrary>,
}

struct QuietLibrary {
    /// The function that ends the threads.
    shutdown: Option<*mut u8>,
    /// The byte that was there.
    original: u8,
    /// True in the library while it has threads.
    has_threads: Option<*const c_int>,
    /// Sets the number of threads.
    set_threads: Option<unsafe extern "C" fn(c_int)>,
}

/// The instruction that returns.
#[cfg(target_arch = "x86_64")]
const RETURN: Option<u8> = Some(0xc3);
#[cfg(not(target_arch = "x86_64"))]
const RETURN: Option<u8> = None;

/// Names of the function that sets the number of threads, as builds have them.
const SETTERS: [&CStr; 5] = [
    c"openblas_set_num_threads",
    c"openblas_set_num_threads64_",
    c"scipy_openblas_set_num_threads",
    c"scipy_openblas_set_num_threads64_",
    c"omp_set_num_threads",
];

/// Whether OpenBLAS can be kept quiet on this processor.
pub(crate) const QUIETS: bool = RETURN.is_some();

impl QuietLibraries {
    fn new() -> Self {
        let mut found = Vec::new();
        for path in loaded_libraries() {
            let name = Path::new(&path).file_name().unwrap_or_default();
            let name = name.to_string_lossy();
            let blas = name.contains("openblas");
            if blas || name.contains("gomp") || name.contains("iomp") {
                found.extend(QuietLibrary::find(&path, blas));
            }
        }
        Self { found }
    }

    fn restore(self) {
        for library in &self.found {
            library.put(library.original);
        }
    }

    /// Threads that the libraries believe to have are not there: they must do
    /// without. One that had none yet may start its own.
    fn settle_in_child(self) {
        for library in &self.found {
            // SAFETY: a variable of a loaded library, an int in every version.
            let has_threads = library
                .has_threads
                .is_none_or(|it| unsafe { it.read() } != 0);
            if !has_threads {
                library.put(library.original);
            } else if let Some(set) = library.set_threads {
                // SAFETY: a function that takes the number; it locks nothing
                // when the number does not grow.
                unsafe { set(1) };
            }
        }
    }
}

impl QuietLibrary {
    fn find(path: &str, blas: bool) -> Option<Self> {
        let path = CString::new(path).ok()?;
        // SAFETY: a library that is loaded; nothing is run.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if handle.is_null() {
            return None;
        }
        let symbol = |name: &CStr| {
            // SAFETY: an open handle and a C string.
            let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        let setter = SETTERS.iter().find_map(|name| symbol(name));
        let mut library = Self {
            shutdown: None,
            original: 0,
            has_threads: None,
            // SAFETY: all of them take one int and return nothing.
            set_threads: setter.map(|it| unsafe {
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int)>(it)
            }),
        };
        if blas {
            library.has_threads = symbol(c"blas_server_avail").map(|it| it.cast_const().cast());
            library.shutdown = symbol(c"blas_thread_shutdown_").map(<*mut c_void>::cast);
            if let (Some(place), Some(ret)) = (library.shutdown, RETURN) {
                // SAFETY: the first byte of a function.
                library.original = unsafe { place.read() };
                library.put(ret);
            }
        }
        // The library stays loaded without our handle.
        // SAFETY: a handle that is closed once.
        unsafe { libc::dlclose(handle) };
        Some(library)
    }

    /// Changes the first byte of the function.
    fn put(&self, byte: u8) {
        let (Some(place), Some(_)) = (self.shutdown, RETURN) else {
            return;
        };
        // SAFETY: no pointer, no precondition.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let start = (place as usize) & !(page - 1);
        let writable = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: the page of a function, which stays readable and executable.
        let allowed = unsafe { libc::mprotect(start as *mut c_void, page, writable) };
        if allowed != 0 {
            return;
        }
        // SAFETY: writable now; a byte is written in one piece, and nobody but
        // a forking thread, which this one is, calls the function.
        unsafe { place.write_volatile(byte) };
        let before = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: as above.
        unsafe { libc::mprotect(start as *mut c_void, page, before) };
    }
}

/// The paths of the libraries that this process has loaded.
pub(crate) fn loaded_libraries() -> Vec<String> {
    unsafe extern "C" fn collect(
        about: *mut libc::dl_phdr_info,
        _size: usize,
        names: *mut c_void,
    ) -> c_int {
        // SAFETY: `dl_iterate_phdr` gives a valid description.
        let name = unsafe { (*about).dlpi_name };
        if !name.is_null() {
            // SAFETY: a C string, valid during the call.
            let name = unsafe { CStr::from_ptr(name) };
            // SAFETY: the vector below, which nobody else uses meanwhile.
            let names = unsafe { &mut *names.cast::<Vec<String>>() };
            names.push(name.to_string_lossy().into_owned());
        }
        0
    }
    let mut names: Vec<String> = Vec::new();
    // SAFETY: the callback fits, the vector outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut names).cast()) };
    names
}

/// Closes all descriptors of the calling thread but these. The thread has a
/// table of its own, so that nobody else loses any.
pub(crate) fn keep_only(keep: &[BorrowedFd<'_>]) {
    let mut keep: Vec<RawFd> = keep.iter().map(|it| it.as_raw_fd()).collect();
    keep.sort_unstable();
    let mut from: libc::c_uint = 0;
    for kept in keep {
        let kept = libc::c_uint::try_from(kept).unwrap_or(0);
        if kept > from {
            // SAFETY: closes numbers that no owner in this table uses.
            unsafe { libc::syscall(libc::SYS_close_range, from, kept - 1, 0) };
        }
        from = kept + 1;
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, 0) };
}

/// A file in memory, as a private copy that may be written to.
#[derive(Debug)]
pub(crate) struct PrivateMap {
    start: usize,
    length: usize,
}

impl PrivateMap {
    /// Maps the first `length` bytes of a file that cannot become shorter.
    pub(crate) fn new(file: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start as usize,
            length,
        })
    }

    /// Gives the mapping away: start and length, to be ended by [`unmap`].
    pub(crate) fn into_parts(self) -> (usize, usize) {
        let parts = (self.start, self.length);
        std::mem::forget(self);
        parts
    }
}

impl Drop for PrivateMap {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours that nobody was given.
        unsafe { libc::munmap(self.start as *mut c_void, self.length) };
    }
}

/// Ends a mapping that [`PrivateMap::into_parts`] gave away.
#[pyfunction]
pub(crate) fn unmap(start: usize, length: usize) {
    drop(PrivateMap { start, length });
}

/// A descriptor of this process once more, as an owned one.
pub(crate) fn duplicate(descriptor: RawFd) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: duplicating any number is harmless; a closed one is an error.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new number that nobody else knows.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(copy) })
}
