//! A raw WebSocket client whose own cost is small: prepared frames, one write
//! and usually one read for each request.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// A daemon that is silent for this long will not answer any more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A whole text frame from a client, ready to be written (RFC 6455, section
/// 5.2). The mask is zero, so the text stands in it as it is.
pub(crate) fn frame(text: &str) -> Vec<u8> {
    let mut bytes = vec![0x81];
    if let Ok(length) = u8::try_from(text.len())
        && length < 126
    {
        bytes.push(0x80 | length);
    } else if let Ok(length) = u16::try_from(text.len()) {
        bytes.push(0x80 | 126);
        bytes.extend_from_slice(&length.to_be_bytes());
    } else {
        bytes.push(0x80 | 127);
        bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// One connection to the daemon.
pub(crate) struct Connection<S = UnixStream> {
    stream: S,
    received: Vec<u8>,
    /// How much of it was given out.
    taken: usize,
}

impl Connection {
    /// Connects and upgrades.
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Self::upgrade(stream, "")
    }

    /// The descriptor, to wait on.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<S: Read + Write> Connection<S> {
    /// Upgrades, with more lines of the request's head.
    pub(crate) fn upgrade(mut stream: S, headers: &str) -> Result<Self> {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             {headers}\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream
                .read_exact(&mut byte)
                .context("the daemon hung up during the handshake")?;
            answer.push(byte[0]);
        }
        ensure!(
            answer.starts_with(b"HTTP/1.1 101"),
            "the upgrade was refused: {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(Self {
            stream,
            received: Vec::with_capacity(4096),
            taken: 0,
        })
    }

    /// Writes a prepared frame.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(frame)?)
    }

    /// Waits for the next text message.
    pub(crate) fn receive(&mut self) -> Result<&str> {
        self.received.drain(..self.taken);
        self.taken = 0;
        loop {
            if let Some((start, end)) = whole_frame(&self.received) {
                ensure!(
                    self.received[0] == 0x81,
                    "no text frame: {:#x}",
                    self.received[0]
                );
                self.taken = end;
                return Ok(std::str::from_utf8(&self.received[start..end])?);
            }
            let mut part = [0; 16384];
            let count = self
                .stream
                .read(&mut part)
                .context("no answer from the daemon")?;
            if count == 0 {
                bail!("the daemon hung up");
            }
            self.received.extend_from_slice(&part[..count]);
        }
    }

    /// True if the next message has been read already.
    pub(crate) fn has_more(&self) -> bool {
        whole_frame(&self.received[self.taken..]).is_some()
    }

    /// Sends a prepared frame and waits for the answer.
    pub(crate) fn request(&mut self, frame: &[u8]) -> Result<&str> {
        self.send(frame)?;
        self.receive()
    }

    /// Sends a text and parses the structured answer, which must not be a
    /// refusal.
    pub(crate) fn ask(&mut self, text: &str) -> Result<serde_json::Value> {
        let answer: serde_json::Value = serde_json::from_str(self.request(&frame(text))?)?;
        ensure!(answer["ok"] == true, "`{text}` was answered with {answer}");
        Ok(answer)
    }
}

/// Where the text of a server's frame begins and ends, once it is whole.
fn whole_frame(bytes: &[u8]) -> Option<(usize, usize)> {
    let (start, length) = match *bytes.get(1)? {
        126 => (
            4,
            usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
        ),
        127 => (
            10,
            usize::try_from(u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)).ok()?,
        ),
        short => (2, usize::from(short)),
    };
    let end = length.checked_add(start)?;
    (bytes.len() >= end).then_some((start, end))
}
