//! Any bytes on a lane, in any pieces: a decoder refuses them or gives whole
//! messages, and an output log gives its records or says that it is damaged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pythond_protocol::lane::{Decoder, HELLO_TAG, Hello, HostCommand, HostEvent};
use pythond_protocol::output_log::{Demuxed, merged, records};

/// Feeds the bytes in pieces and takes messages out until none is left.
fn decode_all<H: serde::de::DeserializeOwned>(bytes: &[u8], piece: usize) -> usize {
    let mut decoder = Decoder::new(HELLO_TAG);
    let mut found = 0;
    for part in bytes.chunks(piece) {
        decoder.extend(part);
        loop {
            match decoder.next_message::<H>() {
                Ok(Some(message)) => {
                    assert!(message.body.len() <= bytes.len());
                    found += 1;
                }
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else {
        return;
    };
    let piece = usize::from(first).max(1);
    // However the bytes are cut, the messages are the same.
    assert_eq!(
        decode_all::<HostEvent>(rest, piece),
        decode_all::<HostEvent>(rest, rest.len().max(1)),
    );
    decode_all::<HostCommand>(rest, piece);
    decode_all::<Hello>(rest, piece);

    let whole = records(rest).all(|record| record.is_ok());
    let both = Demuxed::from_log(rest);
    assert_eq!(both.is_ok(), whole);
    if let (Ok(both), Ok(merged)) = (both, merged(rest)) {
        assert_eq!(both.stdout.len() + both.stderr.len(), merged.len());
    }
});
