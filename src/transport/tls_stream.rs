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

    /// What both ends agreed to speak (RFC 7301), if it was asked.
    pub(crate) fn agreed_protocol(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    use pythond_identity::{Pins, UnixTime};
    use pythond_tls::ClientTls;
    use rustls::AlertDescription;

    /// Takes some bytes, then fails; has some to read.
    struct Fake {
        takes: usize,
        fails: ErrorKind,
        said: VecDeque<u8>,
    }

    impl Read for Fake {
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
            match self.said.is_empty() {
                true => Err(ErrorKind::WouldBlock.into()),
                false => self.said.read(buffer),
            }
        }
    }

    impl Write for Fake {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            let count = bytes.len().min(self.takes);
            self.takes -= count;
            match count {
                0 => Err(self.fails.into()),
                count => Ok(count),
            }
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    fn over(wire: Fake) -> TlsStream<Fake> {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
        let address = "far.example".parse().unwrap();
        let tls = ClientTls::new(address, Pins::default(), None, now).unwrap();
        TlsStream::new(tls.connection().unwrap(), wire)
    }

    #[test]
    fn nothing_is_said_to_be_sent_before_it_is() {
        let mut stream = over(Fake {
            takes: 10,
            fails: ErrorKind::WouldBlock,
            said: VecDeque::new(),
        });
        assert!(!stream.shake_hands().unwrap());
        for _ in 0..2 {
            assert!(stream.wants_write());
            assert_eq!(stream.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
            assert_eq!(
                stream.write(b"x").unwrap_err().kind(),
                ErrorKind::WouldBlock
            );
        }
        stream.wire.takes = 1 << 20;
        stream.flush().unwrap();
        assert!(!stream.wants_write());
    }

    #[test]
    fn what_the_other_end_said_before_it_closed_counts_more_than_that_it_did() {
        let alert = [0x15, 3, 3, 0, 2, 2, 0x74];
        let mut stream = over(Fake {
            takes: 0,
            fails: ErrorKind::BrokenPipe,
            said: alert.into(),
        });
        let error = stream.shake_hands().unwrap_err();
        let why = error.get_ref().and_then(|it| it.downcast_ref());
        assert_eq!(
            why,
            Some(&rustls::Error::AlertReceived(
                AlertDescription::CertificateRequired
            ))
        );
        let mut stream = over(Fake {
            takes: 0,
            fails: ErrorKind::BrokenPipe,
            said: VecDeque::new(),
        });
        let error = stream.shake_hands().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}
