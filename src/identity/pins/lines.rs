//! The file of pins as text. Comments and what is not touched stay as they are.

use super::Pin;
use crate::error::PinLineError;
use crate::{Certificate, PeerAddress};

const NO_ADDRESS: &str = "*";

/// All pins of the file, or the number of the first line that is wrong.
pub(super) fn parse(content: &[u8]) -> Result<Vec<Pin>, (usize, PinLineError)> {
    let mut pins = Vec::new();
    for (number, line) in (1..).zip(content.split(|byte| *byte == b'\n')) {
        pins.extend(pin(line).map_err(|reason| (number, reason))?);
    }
    Ok(pins)
}

/// The content without the lines of some pins. It was parsed before.
pub(super) fn without(content: &[u8], goes: impl Fn(&Pin) -> bool) -> Vec<u8> {
    content
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !matches!(pin(line), Ok(Some(pin)) if goes(&pin)))
        .flatten()
        .copied()
        .collect()
}

/// Adds a line.
pub(super) fn add(content: &mut Vec<u8>, address: Option<&PeerAddress>, pinned: &Certificate) {
    if !content.is_empty() && !content.ends_with(b"\n") {
        content.push(b'\n');
    }
    let address = address.map_or(NO_ADDRESS.to_owned(), PeerAddress::to_string);
    let (key, certificate) = (pinned.key(), pinned.fingerprint());
    content.extend(format!("{address} {key} {certificate}\n").into_bytes());
}

/// The pin of a line; none if it is empty or a comment.
fn pin(line: &[u8]) -> Result<Option<Pin>, PinLineError> {
    let line = std::str::from_utf8(line).map_err(|_| PinLineError::NoText)?;
    if line.trim().is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let [address, key, certificate] = words[..] else {
        return Err(PinLineError::Words);
    };
    let address = match address {
        NO_ADDRESS => None,
        address => Some(address.parse()?),
    };
    Ok(Some(Pin {
        address,
        key: Some(key.parse()?),
        certificate: certificate.parse()?,
        kept: None,
        files: Vec::new(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> String {
        crate::KeyFingerprint::of(b"k").to_string()
    }

    fn certificate() -> String {
        crate::CertificateFingerprint::of(b"c").to_string()
    }

    #[test]
    fn lines_are_pins_and_comments_stay() {
        let (key, certificate) = (key(), certificate());
        let text = format!(
            "# mine\n\n[::1]:7 {key} {certificate}\r\n  * {key} {certificate}\nb {key} {certificate}"
        );
        let pins = parse(text.as_bytes()).unwrap();
        let addresses: Vec<_> = pins
            .iter()
            .map(|pin| pin.address.as_ref().map(PeerAddress::to_string))
            .collect();
        let expected = [Some("[::1]:7".to_owned()), None, Some("b:7399".to_owned())];
        assert_eq!(addresses, expected);
        let left = without(text.as_bytes(), |pin| pin.address.is_some());
        assert_eq!(
            String::from_utf8(left).unwrap(),
            format!("# mine\n\n  * {key} {certificate}\n")
        );
    }

    #[test]
    fn the_first_wrong_line_is_named() {
        let (key, certificate) = (key(), certificate());
        for (line, wrong) in [("x", PinLineError::Words), ("a b c d", PinLineError::Words)] {
            let text = format!("# first\n{line}\n");
            assert_eq!(parse(text.as_bytes()), Err((2, wrong)));
        }
        for line in [
            format!("a: {key} {certificate}"),
            format!("a {certificate} {key}"),
            format!("a {key} {}", &certificate[3..]),
        ] {
            assert_eq!(parse(line.as_bytes()).unwrap_err().0, 1, "{line}");
        }
        assert_eq!(parse(b"\xff\n"), Err((1, PinLineError::NoText)));
    }
}
