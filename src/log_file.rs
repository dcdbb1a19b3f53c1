//! A log file that does not grow without bound: once it is full it becomes the
//! older one, and a new one is begun.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use pythond_private_fs::{PrivateDir, PrivateFsError};

/// What is done with each new file.
type Opened = fn(&File);

/// A file of lines, and the one before it as `NAME.1`.
#[derive(Debug)]
pub(crate) struct LogFile {
    dir: Arc<PrivateDir>,
    name: &'static str,
    file: File,
    bytes: u64,
    /// Greatest size, in bytes. As much is kept of the file before.
    most: u64,
    opened: Opened,
}

impl LogFile {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// As [`PrivateDir::append_file`].
    pub(crate) fn open(
        dir: Arc<PrivateDir>,
        name: &'static str,
        most: u64,
        opened: Opened,
    ) -> Result<Self, PrivateFsError> {
        let file = dir.append_file(name)?;
        // Without a size it is begun anew a little late.
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(Self {
            dir,
            name,
            file,
            bytes,
            most,
            opened,
        })
    }

    /// Begins a new file.
    fn turn(&mut self) {
        let [older, newer] = ["1", "new"].map(|end| format!("{}.{end}", self.name));
        // Whatever fails before the last step leaves both files as they are.
        let turned = self.dir.empty_file(&newer).and_then(|file| {
            self.dir.rename(self.name, &older)?;
            self.dir.rename(&newer, self.name)?;
            Ok(file)
        });
        match turned {
            Ok(file) => {
                self.file = file;
                (self.opened)(&self.file);
            }
            // The lines so far are given up: a log that fills the disk would do
            // more harm.
            Err(_) => {
                let _ = self.file.set_len(0);
            }
        }
        self.bytes = 0;
    }
}

impl Write for LogFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        // One that was removed would be filled for nobody.
        if self.file.metadata().is_ok_and(|it| it.nlink() == 0)
            && let Ok(file) = self.dir.append_file(self.name)
        {
            self.file = file;
            self.bytes = 0;
            (self.opened)(&self.file);
        }
        let length = lines.len() as u64;
        if self.bytes > 0 && self.bytes.saturating_add(length) > self.most {
            self.turn();
        }
        let count = self.file.write(lines)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Makes room in a file that another process is about to append to.
///
/// # Errors
/// As [`PrivateDir::append_file`].
pub(crate) fn open_with_room(
    dir: &PrivateDir,
    name: &str,
    most: u64,
) -> Result<File, PrivateFsError> {
    let file = dir.append_file(name)?;
    if file.metadata().is_ok_and(|metadata| metadata.len() >= most)
        && dir.rename(name, &format!("{name}.1")).is_ok()
    {
        return dir.append_file(name);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_becomes_the_older_one_and_no_more_than_two_are_kept() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = tempfile::tempdir().unwrap();
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(place.path(), private).unwrap();
        let dir = Arc::new(PrivateDir::open(place.path()).unwrap());
        let mut log = LogFile::open(Arc::clone(&dir), "a.log", 1 << 20, |_| {}).unwrap();
        log.most = 100;
        for number in 0..50 {
            writeln!(log, "line {number:03}").unwrap();
        }
        let names: std::collections::BTreeSet<_> = dir.entries().unwrap().into_iter().collect();
        assert_eq!(names.iter().collect::<Vec<_>>(), ["a.log", "a.log.1"]);
        let text = |name: &str| String::from_utf8(dir.read_file(name, 100).unwrap()).unwrap();
        let both = text("a.log.1") + &text("a.log");
        let numbers: Vec<u32> = both
            .lines()
            .map(|line| line[5..].parse().unwrap())
            .collect();
        assert!(
            numbers.len() > 10 && numbers.last() == Some(&49),
            "{numbers:?}"
        );
        assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]));
        // Where no new one can be made, the older one stays.
        let older = text("a.log.1");
        rustix::fs::mkdirat(
            rustix::fs::CWD,
            place.path().join("a.log.new"),
            0o700.into(),
        )
        .unwrap();
        log.write_all(&[b'y'; 99]).unwrap();
        assert_eq!(text("a.log.1"), older);
        std::fs::remove_dir(place.path().join("a.log.new")).unwrap();
        // One that is removed under us costs its lines, not the log.
        dir.remove("a.log").unwrap();
        log.write_all(&[b'x'; 90]).unwrap();
        writeln!(log, "the next one").unwrap();
        assert_eq!(text("a.log"), "the next one\n");
    }
}
