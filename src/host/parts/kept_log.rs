//! A cell's output as the host keeps it, with a disk that does at once what it is
//! told.

use std::path::PathBuf;

use pythond_protocol::output_log::Stream;

use crate::cell_log::{CellLog, Count, Found, Piece, Room, Wanted};
use crate::disk::Job;

const CELL: u64 = 1;

#[derive(Debug)]
pub(crate) struct KeptLog {
    log: CellLog,
    pub(crate) directory: PathBuf,
    most: u64,
}

impl KeptLog {
    /// One whose files lie in this directory and have so many bytes at most.
    pub(crate) fn new(directory: PathBuf, most: u64) -> Self {
        let log = CellLog::default();
        Self {
            log,
            directory,
            most,
        }
    }

    pub(crate) fn total(&self) -> Count {
        self.log.total()
    }

    pub(crate) fn lost(&self) -> u64 {
        self.log.lost()
    }

    pub(crate) fn append(&mut self, stream: Stream, data: &[u8]) {
        self.with_room(|log, room| log.append(stream, data, room));
    }

    pub(crate) fn remove_files(&mut self) {
        self.with_room(|log, room| log.remove_files(room));
    }

    fn with_room(&mut self, work: impl FnOnce(&mut CellLog, &mut Room<'_>)) {
        let mut jobs = Vec::new();
        let mut room = Room {
            cell: CELL,
            most: self.most,
            free: true,
            jobs: &mut jobs,
        };
        work(&mut self.log, &mut room);
        for job in jobs {
            match job {
                Job::Keep(part) => {
                    let written = part.write(&self.directory);
                    self.log.spilled(&part, written);
                }
                Job::Remove(name) => drop(std::fs::remove_file(self.directory.join(name))),
                Job::Lock | Job::Records | Job::Read(_) => {}
            }
        }
    }

    pub(crate) fn read(&self, stream: Option<Stream>, offset: u64, most: usize) -> Piece {
        let wanted = Wanted {
            cell: CELL,
            stream,
            offset,
            most,
            follow: false,
        };
        match self.log.read(&wanted, true) {
            Found::Here(piece) => piece,
            Found::InFiles(parts) => parts.read(&self.directory),
        }
    }
}
