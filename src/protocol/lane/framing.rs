//! Messages as bytes: encoded, decoded, taken out of a stream.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{MAX_HEADER, MAX_MESSAGE, PREFIX};

/// Bytes that are no message of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// The tag is not the agreed one.
    #[error("a lane message has a wrong tag")]
    WrongTag,
    /// A length is impossible.
    #[error("a lane message has an impossible length")]
    BadLength,
    /// The header is none of the known words.
    #[error("a lane message has an unknown header: {0}")]
    BadHeader(String),
}

/// Encodes one message.
///
/// # Errors
/// [`LaneError::BadLength`] if it would be greater than [`MAX_MESSAGE`].
pub fn encode<H: Serialize>(tag: u64, header: &H, body: &[u8]) -> Result<Vec<u8>, LaneError> {
    let mut message = vec![0; PREFIX];
    serde_json::to_writer(&mut message, header)
        .map_err(|error| LaneError::BadHeader(error.to_string()))?;
    let header_length = message.len() - PREFIX;
    let length = message.len() - 4 + body.len();
    if length > MAX_MESSAGE || header_length > MAX_HEADER {
        return Err(LaneError::BadLength);
    }
    let as_u32 = |length: usize| u32::try_from(length).map_err(|_| LaneError::BadLength);
    message[..4].copy_from_slice(&as_u32(length)?.to_le_bytes());
    message[4..12].copy_from_slice(&tag.to_le_bytes());
    message[12..16].copy_from_slice(&as_u32(header_length)?.to_le_bytes());
    message.extend_from_slice(body);
    Ok(message)
}

/// The first four things of a message, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Length of the header.
    pub header: usize,
    /// Length of the body.
    pub body: usize,
}

impl Prefix {
    /// Reads and checks the 16 bytes before a header.
    ///
    /// # Errors
    /// [`LaneError`] if the tag or a length is wrong.
    pub fn parse(tag: u64, bytes: &[u8; PREFIX]) -> Result<Self, LaneError> {
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
        };
        let mut found = [0; 8];
        found.copy_from_slice(&bytes[4..12]);
        if u64::from_le_bytes(found) != tag {
            return Err(LaneError::WrongTag);
        }
        let (length, header) = (number(0), number(12));
        if length > MAX_MESSAGE || header > MAX_HEADER {
            return Err(LaneError::BadLength);
        }
        let body = length
            .checked_sub(PREFIX - 4 + header)
            .ok_or(LaneError::BadLength)?;
        Ok(Self { header, body })
    }

    /// Bytes that follow the prefix.
    #[must_use]
    pub fn remaining(self) -> usize {
        self.header + self.body
    }
}

/// A message: words and raw bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<H> {
    /// The words.
    pub header: H,
    /// The raw bytes, empty for most.
    pub body: Vec<u8>,
}

/// Decodes what followed a prefix.
///
/// # Errors
/// [`LaneError::BadHeader`] if the header is none of `H`'s words.
pub fn decode<H: DeserializeOwned>(
    prefix: Prefix,
    mut bytes: Vec<u8>,
) -> Result<Message<H>, LaneError> {
    let header = bytes
        .get(..prefix.header)
        .ok_or(LaneError::BadLength)
        .and_then(|header| {
            serde_json::from_slice(header).map_err(|error| LaneError::BadHeader(error.to_string()))
        })?;
    bytes.drain(..prefix.header);
    Ok(Message {
        header,
        body: bytes,
    })
}

/// Takes whole messages out of a byte stream.
#[derive(Debug)]
pub struct Decoder {
    tag: u64,
    buffer: Vec<u8>,
}

impl Decoder {
    /// A decoder of messages with this tag.
    #[must_use]
    pub fn new(tag: u64) -> Self {
        Self {
            tag,
            buffer: Vec::new(),
        }
    }

    /// Expects another tag from the next message on.
    pub fn set_tag(&mut self, tag: u64) {
        self.tag = tag;
    }

    /// The bytes that wait, for a reader that appends to them in place; it must
    /// not touch those that are there.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Adds bytes that arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if it is there.
    ///
    /// # Errors
    /// [`LaneError`] if the bytes are no message; the stream is useless then.
    pub fn next_message<H: DeserializeOwned>(&mut self) -> Result<Option<Message<H>>, LaneError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let prefix = Prefix::parse(self.tag, prefix)?;
        let end = PREFIX + prefix.remaining();
        if self.buffer.len() < end {
            return Ok(None);
        }
        let rest = self.buffer.split_off(end);
        let mut message = std::mem::replace(&mut self.buffer, rest);
        message.drain(..PREFIX);
        decode(prefix, message).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CellSpec, HostCommand, HostEvent};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_comes_back_whatever_way_it_is_cut() {
        let command = HostCommand::Run {
            request: 7,
            how: CellSpec {
                changed: true,
                ..CellSpec::default()
            },
            after: None,
        };
        let bytes = encode(5, &command, b"x = 1").unwrap();
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::new(5);
            decoder.extend(&bytes[..cut]);
            assert_eq!(decoder.next_message::<HostCommand>(), Ok(None));
            decoder.extend(&bytes[cut..]);
            decoder.extend(&bytes[..3]);
            let message = decoder.next_message::<HostCommand>().unwrap().unwrap();
            assert_eq!(message.header, command);
            assert_eq!(message.body, b"x = 1");
            assert_eq!(decoder.next_message::<HostCommand>(), Ok(None));
        }
    }

    #[test]
    fn stray_bytes_are_never_taken_for_a_message() {
        let mut decoder = Decoder::new(5);
        decoder.extend(b"print('hello from session code')");
        assert_eq!(
            decoder.next_message::<HostEvent>(),
            Err(LaneError::WrongTag)
        );
        let forged = encode(6, &HostEvent::CellLaneReady, b"").unwrap();
        let mut decoder = Decoder::new(5);
        decoder.extend(&forged);
        assert_eq!(
            decoder.next_message::<HostEvent>(),
            Err(LaneError::WrongTag)
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), tagged in any::<bool>()) {
            let mut all = bytes.clone();
            if tagged && all.len() >= 12 { all[4..12].copy_from_slice(&9u64.to_le_bytes()); }
            let mut decoder = Decoder::new(9);
            decoder.extend(&all);
            while let Ok(Some(_)) = decoder.next_message::<HostEvent>() {}
        }
    }
}
