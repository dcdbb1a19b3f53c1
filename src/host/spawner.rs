//! Starts threads that share the main thread's descriptors.
//!
//! The I/O thread has a descriptor table of its own, and so would every thread
//! that it starts; a `fire` cell must see the files that other cells opened.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::sys;

/// Something to do on a thread of its own.
pub(crate) trait Job: Send {
    /// Does it.
    fn run(self: Box<Self>);
    /// No thread could be started for it.
    fn give_up(self: Box<Self>, why: &std::io::Error);
    /// Bytes of stack that it needs.
    fn stack_size(&self) -> usize {
        2 << 20
    }
}

/// The thread that starts threads, and what waits for it.
#[derive(Default)]
pub(crate) struct Spawner {
    jobs: Mutex<VecDeque<Box<dyn Job>>>,
    came: Condvar,
}

impl std::fmt::Debug for Spawner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Spawner")
    }
}

impl Spawner {
    /// Starts the thread. Called once, by the main thread.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(&'static self) -> std::io::Result<()> {
        std::thread::Builder::new()
            .name("pythond-spawner".to_owned())
            .stack_size(64 << 10)
            .spawn(move || {
                sys::block_all_signals();
                loop {
                    let job = self.next();
                    spawn(job);
                }
            })
            .map(drop)
    }

    fn next(&self) -> Box<dyn Job> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = jobs.pop_front() {
                return job;
            }
            jobs = self.came.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands a job over; never waits.
    pub(crate) fn hand(&self, job: impl Job + 'static) {
        self.jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(Box::new(job));
        self.came.notify_one();
    }
}

fn spawn(job: Box<dyn Job>) {
    let stack = job.stack_size();
    // The job is needed again if there is no thread for it.
    let job = std::sync::Arc::new(Mutex::new(Some(job)));
    let theirs = std::sync::Arc::clone(&job);
    let take = |job: &Mutex<Option<Box<dyn Job>>>| {
        job.lock().unwrap_or_else(PoisonError::into_inner).take()
    };
    let started = std::thread::Builder::new()
        .name("pythond-service".to_owned())
        .stack_size(stack)
        .spawn(move || {
            if let Some(job) = take(&theirs) {
                job.run();
            }
        });
    if let Err(error) = started
        && let Some(job) = take(&job)
    {
        job.give_up(&error);
    }
}
