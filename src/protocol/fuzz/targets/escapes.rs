//! Any bytes of a session on their way to a terminal: however they are cut, the
//! same passes; what passed passes again as it is; nothing that must not be
//! there is; the way back leads back.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../../../pysh/src/terminal/escapes/mod.rs"]
mod escapes;

use escapes::{Modes, ScreenFilter, Visible};
use libfuzzer_sys::fuzz_target;

/// Beginnings of what asks, answers or reaches beyond the screen.
const NEVER: [&[u8]; 9] = [
    b"\x1bP", b"\x1b_", b"\x1b^", b"\x1bX", b"\x1bc", b"\x1bZ", b"\x1b[>", b"\x1b%", b"\x05",
];

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = (usize::from(input.0) + 1, input.1);
    let mut filter = ScreenFilter::new();
    let whole = filter.filter(bytes);
    let mut pieces = ScreenFilter::new();
    let cut: Vec<u8> = bytes.chunks(step).flat_map(|it| pieces.filter(it)).collect();
    assert_eq!(cut, whole);
    assert_eq!(pieces.modes(), filter.modes());
    assert_eq!(ScreenFilter::new().filter(&whole), whole);
    assert!(std::str::from_utf8(&whole).is_ok());
    for never in NEVER {
        assert!(!whole.windows(never.len()).any(|it| it == never));
    }
    for at in whole.windows(2).enumerate().filter(|(_, it)| it == b"\x1b]") {
        assert!(whole[at.0..].starts_with(b"\x1b]8;"));
    }

    filter.filter(b"\x18");
    let leave = filter.modes().leave();
    filter.filter(&leave);
    assert_eq!(filter.modes().leave(), Modes::default().leave());

    let mut visible = Visible::default();
    let mut shown: Vec<u8> = bytes.chunks(step).flat_map(|it| visible.show(it)).collect();
    shown.extend(visible.finish());
    let mut at_once = Visible::default();
    let mut expected = at_once.show(bytes);
    expected.extend(at_once.finish());
    assert_eq!(shown, expected);
    assert!(std::str::from_utf8(&shown).is_ok());
    for (at, byte) in shown.iter().enumerate() {
        assert!(*byte != 0x1b || shown[at + 1] == b'[');
        assert!(*byte >= b' ' || b"\x1b\n\t\r".contains(byte));
    }
});
