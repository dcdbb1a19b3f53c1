//! What the thread of the disk does for a session.

use std::sync::Mutex;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::disk::Job;
use crate::files::session_directory;
use crate::outputs;
use crate::shared::Shared;

/// Starts the thread.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn start(shared: &'static Shared) -> std::io::Result<()> {
    // Held until the process ends: such a lock belongs to the descriptor table
    // that took it, so no cell and no process that a cell forks can let it go or
    // keep it (fcntl(2)).
    let lock = Mutex::new(None);
    shared.disk.start(move |job| {
        let directory = shared.disk.directory();
        match job {
            Job::Lock => {
                let file = lock_directory(shared);
                *lock
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = file;
            }
            Job::Keep(part) => {
                let written = part.write(directory);
                shared.outputs.spilled(&part, written);
            }
            Job::Remove(name) => {
                if let Ok(directory) = session_directory(directory) {
                    // Nothing is lost if it is gone already.
                    let _ = directory.remove(&name);
                }
            }
            Job::Records => {
                // On a slow disk this may have come out after the session began.
                let taken = shared.is_name_in_use();
                shared.recorder.flush((!taken).then_some(directory));
            }
            Job::Read(read) => read(),
        }
    })
}

/// Locks the session's directory, so that two daemons with one home do not
/// write the same files.
fn lock_directory(shared: &Shared) -> Option<std::fs::File> {
    // A directory that cannot be used is told with the first record.
    let directory = session_directory(shared.disk.directory()).ok()?;
    let file = directory.read_write_file("lock").ok()?;
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            outputs::remove_left_behind(&directory);
            shared.recorder.repair(&directory);
        }
        Err(Errno::AGAIN | Errno::ACCESS) => shared.set_name_in_use(),
        // A file system without locks: nothing can be said.
        Err(_) => {}
    }
    Some(file)
}
