//! A program on a terminal of its own, with somebody who types.

use std::io::{Read, Write};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

/// How long a program may take to show something.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program on a terminal; it is killed in the end.
pub(crate) struct Terminal {
    child: Box<dyn Child + Send + Sync>,
    writer: Box<dyn Write + Send>,
    shown: Receiver<(Instant, Vec<u8>)>,
    // Closed last.
    _master: Box<dyn MasterPty + Send>,
}

impl Terminal {
    /// Starts the program; a thread reads what it shows, and when.
    pub(crate) fn start(program: &Command) -> Result<Self> {
        let mut command = CommandBuilder::new(program.get_program());
        command.args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            }
        }
        command.env("TERM", "xterm-256color");
        let pair = native_pty_system().openpty(PtySize {
            rows: 24,
            cols: 80,
            ..PtySize::default()
        })?;
        let child = pair.slave.spawn_command(command)?;
        let writer = pair.master.take_writer()?;
        let mut reader = pair.master.try_clone_reader()?;
        let (show, shown) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if show
                    .send((Instant::now(), bytes[..count].to_vec()))
                    .is_err()
                {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            writer,
            shown,
            _master: pair.master,
        })
    }

    /// Types something.
    pub(crate) fn type_in(&mut self, text: &[u8]) -> Result<()> {
        self.writer.write_all(text)?;
        Ok(self.writer.flush()?)
    }

    /// Waits until this is shown; when it was.
    pub(crate) fn wait_for(&mut self, text: &[u8]) -> Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (when, bytes) = self
                .shown
                .recv_timeout(left)
                .with_context(|| format!("not shown: {}", String::from_utf8_lossy(text)))?;
            seen.extend(bytes);
            if seen.windows(text.len()).any(|window| window == text) {
                return Ok(when);
            }
            if seen.len() > 1 << 20 {
                bail!("the program shows something else");
            }
        }
    }

    /// Types a key and takes it back; seconds until it was shown.
    pub(crate) fn echo(&mut self) -> Result<f64> {
        let typed = Instant::now();
        self.type_in(b"x")?;
        let shown = self.wait_for(b"x")?;
        // Backspace, which is shown as one step back.
        self.type_in(b"\x7f")?;
        self.wait_for(b"\x08")?;
        Ok(shown.duration_since(typed).as_secs_f64())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
