//! Any text message of a client: it is refused, ignored or decoded, and what
//! decodes keeps the promises of the decoded types.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pythond_protocol::Frame;
use pythond_protocol::verbs::{Parsed, Request};

fuzz_target!(|text: &str| {
    let Some(frame) = Frame::parse(text) else {
        return;
    };
    assert!(!frame.verb.is_empty());
    assert!(!frame.verb.contains(char::is_whitespace));
    if let Some(body) = frame.body {
        assert!(
            text.ends_with(body),
            "a body is what follows the first newline, unchanged"
        );
    }
    let Parsed { request, tag, .. } = Parsed::of(&frame);
    assert!(tag.is_none_or(|tag| !tag.is_empty()));
    match request {
        Ok(Request::Submit(submit)) => assert!(submit.source.len() <= text.len()),
        Ok(_) => {}
        Err(error) => {
            let plain = error.to_plain();
            assert!(plain.starts_with("ERR "), "{plain:?}");
            let line = plain.lines().next().unwrap_or_default();
            assert!(
                !line.contains('\u{1b}'),
                "no control bytes in refusals: {plain:?}"
            );
        }
    }
});
