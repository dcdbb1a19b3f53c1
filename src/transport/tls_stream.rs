//! TLS over a stream that does not wait. rustls has a stream of its own, which
//! may say that all is sent while bytes of it wait; here nothing is said to be
//! sent before it is.

use std::io::{Error, ErrorKind, Read, Result, Write};

use rustls::ClientConnection;

/// A TLS connection, or one that is being made.
#[derive(Debug)]
pub(crate) struct TlsStream<S> {
    session: ClientConnection,
    wire: S,
}

impl<S: Read + Write> TlsStream<S> {
    /// Nothing is sent yet.
    pub(crate) fn new(session: ClientConnection, wire: S) -> Self {
        Self { session, wire }
    }

    /// What is below.
    pub(crate) fn wire(&self) -> &S {
        &self.wire
    }

    /// There are bytes that the wire has not taken.
    pub(crate) fn wants_write(&self) -> bool {
        self.session.wants_write()
    }

    /// Goes on with the handshake; false if the wire has to be waited for.
    pub(crate) fn shake_hands(&mut self) -> Result<bool> {
        loop {
            self.push()?;
            if !self.session.is_handshaking() {
                return Ok(!self.session.wants_write());
            }
            match self.pull() {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the wire what it takes now.
    fn push(&mut self) -> Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.wire) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(self.last_words(error)),
            }
        }
        Ok(())
    }

    /// Takes what the wire has now; 0 at its end.
    fn pull(&mut self) -> Result<usize> {
        loop {
            match self.session.read_tls(&mut self.wire) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.process()?;
                    return Ok(count);
                }
            }
        }
    }

    fn process(&mut self) -> Result<()> {
        match self.session.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => {
                // The other end hears why, if it still listens.
                let _ = self.session.write_tls(&mut self.wire);
                Err(Error::new(ErrorKind::InvalidData, error))
            }
        }
    }

    /// Why the other end takes nothing any more, if it said so before it closed;
    /// else the error itself.
    fn last_words(&mut self, error: Error) -> Error {
        while let Ok(1..) = self.session.read_tls(&mut self.wire) {
            if let Err(why) = self.session.process_new_packets() {
                return Error::new(ErrorKind::InvalidData, why);
            }
        }
        error
    }
}

impl<S: Read + Write> Read for TlsStream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            // What is decrypted comes first: no wait on the wire would tell of it.
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Messages have lengths: one that is cut is seen without TLS.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            match self.push() {
                // Whoever closed for reading may have said something before.
                Err(error) if error.kind() == ErrorKind::InvalidData => return Err(error),
                Ok(()) | Err(_) => {}
            }
            self.pull()?;
        }
    }
}

impl<S: Read + Write> Write for TlsStream<S> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.push()?;
        if self.session.wants_write() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = self.session.writer().write(bytes)?;
        // What is wrong is told next time: the bytes were taken.
        let _ = self.push();
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.push()?;
        if self.session.wants_write() {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.wire.flush()
    }
}
