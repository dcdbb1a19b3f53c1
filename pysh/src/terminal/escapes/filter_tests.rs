use proptest::prelude::*;

use super::*;

/// Fails unless any cut of the bytes gives the same.
fn check(bytes: &[u8], expected: &[u8]) {
    for cut in (0..=bytes.len()).step_by(1 + bytes.len() / 500) {
        let mut filter = ScreenFilter::new();
        let mut passed = filter.filter(&bytes[..cut]);
        passed.extend(filter.filter(&bytes[cut..]));
        assert_eq!(
            String::from_utf8_lossy(&passed),
            String::from_utf8_lossy(expected),
            "{:?} cut at {cut}",
            String::from_utf8_lossy(bytes)
        );
    }
    judge(expected);
}

fn passes(bytes: &[u8]) {
    check(bytes, bytes);
}

fn dropped(bytes: &[u8]) {
    let around = [b"a", bytes, b"b"].concat();
    check(&around, b"ab");
}

#[test]
fn what_draws_passes() {
    passes("text é🐍\r\n\t\x07\x08\x0b\x0c\x0e\x0f".as_bytes());
    passes(b"\x1b[0m\x1b[1;31m\x1b[38;2;1;2;3m\x1b[4:3m\x1b[58:2:0:1:2:3m");
    passes(b"\x1b[5A\x1b[1B\x1b[2C\x1b[3D\x1b[1E\x1b[1F\x1b[7G\x1b[3;4H\x1b[3;4f\x1b[2d\x1b[2`");
    passes(b"\x1b[0J\x1b[1J\x1b[2J\x1b[0K\x1b[?1J\x1b[?2K\x1b[3X\x1b[2@\x1b[2P\x1b[2L\x1b[2M");
    passes(b"\x1b[2;20r\x1b[0r\x1b[2S\x1b[2T\x1b[0s\x1b[0u\x1b[3b\x1b[1I\x1b[1Z\x1b[0g\x1b[3g");
    passes(b"\x1b7\x1b8\x1bD\x1bE\x1bH\x1bM\x1b=\x1b>\x1b(0\x1b)B\x1b*A\x1b+B\x1b#8");
    passes(b"\x1b[4h\x1b[4l\x1b[2 q\x1b[1 @\x1b[1 A\x1b[0!p\x1b[?5W");
    for mode in [
        1, 5, 6, 7, 9, 12, 25, 47, 66, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 1047, 1048,
        1049, 2004, 2026,
    ] {
        passes(format!("\x1b[?{mode}h\x1b[?{mode}l").as_bytes());
    }
}

#[test]
fn sequences_are_written_anew() {
    check(b"\x1b[m\x1b[H", b"\x1b[0m\x1b[0H");
    check(b"\x1b[?25;2004;31h", b"\x1b[?25h\x1b[?2004h");
    check(b"\x1b[4;20h", b"\x1b[4h");
    check(b"\x1b[;5H", b"\x1b[0;5H");
    check(b"\x1b[!p", b"\x1b[0!p");
    // A control inside of a sequence comes first, as terminals do it.
    check(b"\x1b[3\n1m", b"\n\x1b[31m");
    // No character is lost where one was torn.
    passes("éa🐍é€".as_bytes());
    check("\u{80}a🐍".as_bytes(), "a🐍".as_bytes());
    check(b"a\xf0\x9f\x1b[31m\xe2\x82", "a\u{fffd}\x1b[31m".as_bytes());
}

#[test]
fn what_asks_or_answers_is_dropped() {
    for query in [
        // Device attributes, status and cursor position, their private forms.
        "\x1b[c",
        "\x1b[0c",
        "\x1b[>c",
        "\x1b[=c",
        "\x1b[5n",
        "\x1b[6n",
        "\x1b[?6n",
        "\x1b[?996n",
        // Modes, parameters, checksums, version, keyboard protocol.
        "\x1b[?2026$p",
        "\x1b[4$p",
        "\x1b[x",
        "\x1b[1*y",
        "\x1b[1;1;1;1;1;1*y",
        "\x1b[>q",
        "\x1b[>0q",
        "\x1b[?u",
        "\x1b[?4m",
        // Window reports and operations; what is printed.
        "\x1b[18t",
        "\x1b[21t",
        "\x1b[3;0;0t",
        "\x1b[22;0t",
        "\x1b[i",
        "\x1b[5i",
        "\x1b[?5i",
        "\x05",
        "\x1bZ",
        "\x1b[?1S",
        // Settings, capabilities, colours.
        "\x1bP$qm\x1b\\",
        "\x1bP+q544e\x1b\\",
        "\x1b]4;1;?\x07",
        "\x1b]10;?\x07",
        "\x1b]11;?\x1b\\",
        "\x1b]12;?\x07",
    ] {
        dropped(query.as_bytes());
    }
}

#[test]
fn what_reaches_beyond_the_screen_is_dropped() {
    for attack in [
        // Clipboard, titles, directory, notifications, colours.
        "\x1b]52;c;cm0gLXJm\x07",
        "\x1b]52;c;?\x1b\\",
        "\x1b]0;t\x07",
        "\x1b]1;t\x07",
        "\x1b]2;t\x1b\\",
        "\x1b]7;file://h/d\x07",
        "\x1b]9;n\x07",
        "\x1b]777;notify;a;b\x07",
        "\x1b]4;1;#fff\x07",
        "\x1b]10;#fff\x07",
        "\x1b]104\x07",
        "\x1b]50;font\x07",
        "\x1b]1337;File=:AAAA\x07",
        "\x1b]133;A\x07",
        "\x1bktitle\x1b\\",
        // Strings: sixel, user keys, soft fonts, kitty graphics, PM, SOS.
        "\x1bPq#0~\x1b\\",
        "\x1bP0;1|17/6c73\x1b\\",
        "\x1bP0;0;0;0;0;0{ @x\x1b\\",
        "\x1b_Ga=T;AAAA\x1b\\",
        "\x1b^pm\x1b\\",
        "\x1bXsos\x1b\\",
        // Other encodings of keys, the keyboard's lock, lamps.
        "\x1b[>4;2m",
        "\x1b[>1u",
        "\x1b[=1;1u",
        "\x1b[<u",
        "\x1b[2h",
        "\x1b[12h",
        "\x1b[1q",
        "\x1b[?9001h",
        "\x1b[?2031h",
        "\x1b[?2048h",
        "\x1b[?1001h",
        "\x1b[?1034h",
        // Other sizes and charsets, the lines that were scrolled away.
        "\x1b[?3h",
        "\x1b[?40h",
        "\x1b%@",
        "\x1b F",
        "\x1b[3J",
        "\x1b[1;1;1;1;1T",
        "\x1b[1;5s",
        "\x1b(K",
        // Controls that mean nothing good.
        "\x00",
        "\x11",
        "\x13",
        "\x7f",
        "\u{85}",
        "\u{90}",
        "\u{9c}",
        "\u{84}",
        // Too many parameters, marks in the wrong place.
        "\x1b[1?h",
        "\x1b[!!!p",
        "\x1b[ 1q",
    ] {
        dropped(attack.as_bytes());
    }
    check("\u{9b}31mx".as_bytes(), b"31mx");
    check("\u{9d}52;c;YQ==\u{9c}".as_bytes(), b"52;c;YQ==");
    check(b"\x9b5n", b"5n");
    let many = format!("\x1b[{}m", "1;".repeat(40));
    dropped(many.as_bytes());
}

#[test]
fn a_sequence_in_another_one_is_none() {
    check(b"\x1b]0;\x1b]52;c;YQ==\x07", b"");
    check(b"\x1b[\x1b[5n", b"");
    check(b"\x1bP\x1b[31m", b"\x1b[31m");
    check(b"\x1b]8;;https://a/\x1b[5n", b"\x1b]8;;https://a/\x1b\\");
    check(b"\x1b\x1b\x1b[c", b"");
    // Cancelled: what follows is text.
    check(b"\x1b[3\x18c", b"c");
}

#[test]
fn links_lead_to_the_web() {
    passes(b"\x1b]8;;https://example.org/a;b?c=d\x1b\\text\x1b]8;;\x1b\\");
    passes(b"\x1b]8;id=a-1;http://example.org\x1b\\");
    check(b"\x1b]8;id=a:b=c;http://h\x07", b"\x1b]8;;http://h\x1b\\");
    for uri in [
        "file:///etc/passwd",
        "javascript:x",
        "ssh://h",
        "https://",
        "https://a\u{e9}",
    ] {
        dropped(format!("\x1b]8;;{uri}\x07").as_bytes());
    }
    // A link that does not pass ends the one before.
    check(
        b"\x1b]8;;http://h\x07a\x1b]8;;file:///x\x07b",
        b"\x1b]8;;http://h\x1b\\a\x1b]8;;\x1b\\b",
    );
    for length in [2048, 3000, 100_000] {
        let long = format!("\x1b]8;;http://{}\x07", "a".repeat(length));
        dropped(long.as_bytes());
    }
    let split = format!("\x1b]8;;http://h/{}\x07", ";".repeat(20));
    dropped(split.as_bytes());
}

#[test]
fn a_string_without_an_end_keeps_no_memory() {
    for start in ["\x1b]52;c;", "\x1bPq", "\x1b_G", "\x1b[1"] {
        let mut filter = ScreenFilter::new();
        assert_eq!(filter.filter(start.as_bytes()), b"");
        for _ in 0..100 {
            assert_eq!(filter.filter(&[b'1'; 4096]), b"");
            assert!(filter.screen.out.capacity() <= 8192);
        }
    }
}

#[test]
fn the_way_back_undoes_what_was_switched_on() {
    let mut filter = ScreenFilter::new();
    let nothing = b"\x1b[0m\x1b[?25h";
    assert_eq!(filter.modes().leave(), nothing);
    filter.filter(
        b"\x1b[?1049h\x1b[?1h\x1b=\x1b[?25l\x1b[?7l\x1b[?2004h\x1b[?1002;1006h\x1b[?1004h\
          \x1b[5;10r\x1b[4h\x1b[4 q\x1b(0\x0e\x1b[7m\x1b]8;;http://h\x07",
    );
    assert!(filter.modes().reports());
    let text = String::from_utf8(filter.modes().leave()).unwrap();
    assert_eq!(
        text.replace('\x1b', "^"),
        "^]8;;^\\^[?1l^[?7h^[?25h^[?1002l^[?1004l^[?1006l^[?2004l^7^[0r^8^[4l^>^[0 q^(B\x0f^[0m\
         ^[?1049l^[?25h"
    );
    let mut again = ScreenFilter::new();
    assert!(!again.filter(text.as_bytes()).is_empty());
    filter.filter(text.as_bytes());
    assert_eq!(filter.modes().leave(), nothing);
    assert!(!filter.modes().reports());
}

#[test]
fn a_full_reset_spares_what_the_person_has_set() {
    check(
        b"\x1b[?2004hx\x1bc",
        b"\x1b[?2004hx\x1b[?2004l\x1b[0m\x1b[?25h\x1b[0H\x1b[2J",
    );
}

/// Parses what passed, and fails at anything that must not be there. Has a list
/// of its own.
fn judge(passed: &[u8]) {
    struct Judge;
    impl Perform for Judge {
        fn print(&mut self, character: char) {
            assert!(!character.is_control(), "{character:?}");
        }
        fn execute(&mut self, byte: u8) {
            assert!((0x07..=0x0f).contains(&byte), "{byte:#x}");
        }
        fn hook(&mut self, _: &Params, _: &[u8], _: bool, action: char) {
            panic!("DCS {action}");
        }
        fn osc_dispatch(&mut self, parts: &[&[u8]], _: bool) {
            assert_eq!(parts[0], b"8");
            assert!(
                parts[2].is_empty() || parts[2].starts_with(b"http"),
                "{parts:?}"
            );
        }
        fn csi_dispatch(&mut self, params: &Params, marks: &[u8], ignore: bool, action: char) {
            assert!(!ignore);
            assert!(!"cntixyuqp{|}~".contains(action) || !marks.is_empty() || action == 'u');
            assert!(
                !marks.iter().any(|mark| b"><=$*'\"#".contains(mark)),
                "{marks:?}"
            );
            for mode in params.iter().filter(|_| action == 'h') {
                assert!(
                    ![2, 3, 40, 1001, 2031, 2048, 9001].contains(&mode[0]),
                    "{mode:?}"
                );
            }
        }
        fn esc_dispatch(&mut self, marks: &[u8], _: bool, byte: u8) {
            assert!(
                !b"cZkPX^_".contains(&byte) || !marks.is_empty(),
                "{byte:#x}"
            );
            assert!(marks != b"%", "another charset");
        }
    }
    Parser::<4096>::new_with_size().advance(&mut Judge, passed);
}

fn tokens() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..6),
        "[a-zé🐍\u{80}-\u{9f}]{0,4}".prop_map(String::into_bytes),
        "\x1b\\[[<=>?]?[0-9:;]{0,8}[ -/]{0,2}[@-~]".prop_map(String::into_bytes),
        "\x1b[ -/]{0,2}[0-~]".prop_map(String::into_bytes),
        "\x1b[\\]P_X^][ -~]{0,12}(\x07|\x1b\\\\|\u{9c})?".prop_map(String::into_bytes),
        "\x1b\\]8;[a-z=;]{0,5};http://[!-~]{0,9}\x07".prop_map(String::into_bytes),
    ];
    prop::collection::vec(token, 0..16).prop_map(|tokens| tokens.concat())
}

proptest! {
    #[test]
    fn nothing_but_what_is_allowed_passes_however_it_is_cut(
        bytes in tokens(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut filter = ScreenFilter::new();
        let whole = filter.filter(&bytes);
        judge(&whole);

        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let mut pieces = ScreenFilter::new();
        let (mut from, mut joined) = (0, Vec::new());
        for cut in cuts {
            joined.extend(pieces.filter(&bytes[from..cut]));
            from = cut;
        }
        prop_assert_eq!(&joined, &whole);
        prop_assert_eq!(pieces.modes(), filter.modes());

        // What passed once passes again, as it is.
        let mut again = ScreenFilter::new();
        let second = again.filter(&whole);
        prop_assert_eq!(String::from_utf8_lossy(&second), String::from_utf8_lossy(&whole));
    }

    #[test]
    fn the_way_back_passes_and_leads_back(bytes in tokens()) {
        let mut filter = ScreenFilter::new();
        filter.filter(&bytes);
        // Whatever was begun is ended first.
        filter.filter(b"\x18");
        let leave = filter.modes().leave();
        judge(&leave);
        filter.filter(&leave);
        prop_assert_eq!(filter.modes().leave(), Modes::default().leave());
    }
}
