//! The code itself: eight decimal digits.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

const DIGITS: usize = 8;
const CODES: u32 = 100_000_000;
/// The greatest multiple of [`CODES`] that 32 bits hold: what is beyond it would make
/// some codes likelier than others.
const FAIR: u32 = u32::MAX / CODES * CODES;

/// A one-time code. Never shows itself but by [`Code::reveal`].
#[derive(Clone)]
pub struct Code(Zeroizing<[u8; DIGITS]>);

/// The text is no code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a code has eight digits, like 4821-7305")]
pub struct NotACode;

impl Code {
    /// One from the operating system's randomness, each as likely as any other.
    ///
    /// # Errors
    /// If the system has none.
    pub fn random() -> Result<Self, getrandom::Error> {
        let number = loop {
            let mut bytes = Zeroizing::new([0; 4]);
            getrandom::fill(&mut *bytes)?;
            let number = u32::from_ne_bytes(*bytes);
            if number < FAIR {
                break number % CODES;
            }
        };
        let mut digits = Zeroizing::new([b'0'; DIGITS]);
        let mut rest = number;
        for digit in digits.iter_mut().rev() {
            *digit += u8::try_from(rest % 10).expect("a digit is less than ten");
            rest /= 10;
        }
        Ok(Self(digits))
    }

    /// As people read it: `4821-7305`.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(DIGITS + 1));
        for (place, digit) in self.0.iter().enumerate() {
            if place == DIGITS / 2 {
                text.push('-');
            }
            text.push(char::from(*digit));
        }
        text
    }

    pub(crate) fn digits(&self) -> &[u8] {
        &*self.0
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code(…)")
    }
}

impl FromStr for Code {
    type Err = NotACode;

    /// With or without dashes and blanks.
    fn from_str(text: &str) -> Result<Self, NotACode> {
        let mut digits = Zeroizing::new([0; DIGITS]);
        let mut places = digits.iter_mut();
        for character in text.chars() {
            match character {
                '0'..='9' => {
                    let place = places.next().ok_or(NotACode)?;
                    *place = u8::try_from(character).map_err(|_| NotACode)?;
                }
                '-' => {}
                blank if blank.is_whitespace() => {}
                _ => return Err(NotACode),
            }
        }
        match places.next() {
            None => Ok(Self(digits)),
            Some(_) => Err(NotACode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_as_people_type_them() {
        for text in ["48217305", "4821-7305", " 4821 7305\n", "48-21-73-05"] {
            let code: Code = text.parse().unwrap();
            assert_eq!(code.reveal().as_str(), "4821-7305", "{text:?}");
            assert_eq!(format!("{code:?}"), "Code(…)");
        }
        for text in ["", "4821-730", "4821-73055", "4821-730x", "٤٨٢١٧٣٠٥", "-"] {
            assert_eq!(text.parse::<Code>().unwrap_err(), NotACode, "{text:?}");
        }
    }

    #[test]
    fn each_code_is_another_and_can_be_typed() {
        let codes: std::collections::BTreeSet<String> = (0..1000)
            .map(|_| Code::random().unwrap().reveal().to_string())
            .collect();
        // Among a thousand of 10^8 two are alike once in two hundred rounds.
        assert!(codes.len() >= 990, "{}", codes.len());
        // Every digit comes at every place: a place that missed one would be a fault of
        // ours but once in 10^44 rounds.
        for place in [0, 1, 2, 3, 5, 6, 7, 8] {
            let seen: std::collections::BTreeSet<u8> =
                codes.iter().map(|code| code.as_bytes()[place]).collect();
            assert_eq!(seen.len(), 10, "{place}");
        }
        for code in codes {
            code.parse::<Code>().unwrap();
        }
    }
}
