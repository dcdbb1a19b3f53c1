//! What is sent: JSON objects with one member each.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Greatest message, in bytes. The longest is the token's.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// An element or a proof: base64 on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// A token on its way. Shows itself on the wire alone.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(pub Zeroizing<String>);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientMessage {
    /// First: its element of the key exchange.
    Element(Bytes),
    /// Its proof that it has the key and saw the same certificates.
    Proof(Bytes),
    /// It believes the server and has pinned its key.
    Pinned(bool),
}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerMessage {
    /// Its element of the key exchange.
    Element(Bytes),
    /// Its proof, for a client whose proof is right.
    Proof(Bytes),
    /// Last: the client is trusted, and this is the token.
    Token(SecretText),
    /// It goes no further.
    Error(Refusal),
}

/// Why a server goes no further.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// What failed.
    pub message: String,
}

/// Words for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The code is another, or somebody is in between.
    WrongCode,
    /// No code is valid any more: it was used, withdrawn, tried too often, or lapsed.
    NoCode,
    /// The client's certificate is none that may be trusted.
    CertificateRefused,
    /// So many wrong codes or tokens came from there that none is looked at now.
    TooManyTries,
    /// What came is no message that belongs here.
    Usage,
    /// The server could not do its part.
    Internal,
    /// A word that came after this version.
    #[serde(other)]
    Unknown,
}

impl ClientMessage {
    /// As it is sent.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and flags become JSON")
    }
}

impl ServerMessage {
    /// As it is sent.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_json::to_string(self).expect("texts become JSON"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_objects_with_one_member() {
        let element = ClientMessage::Element(Bytes(vec![1, 2, 255]));
        assert_eq!(element.to_json(), r#"{"element":"AQL/"}"#);
        let pinned: ClientMessage = serde_json::from_str(r#"{"pinned":true}"#).unwrap();
        assert_eq!(pinned, ClientMessage::Pinned(true));
        let text = r#"{"error":{"code":"wrong_code","message":"m"}}"#;
        let ServerMessage::Error(refusal) = serde_json::from_str(text).unwrap() else {
            panic!("{text}")
        };
        assert_eq!(refusal.code, RefusalCode::WrongCode);
        let text = r#"{"error":{"code":"of_tomorrow","message":"m","more":1}}"#;
        let ServerMessage::Error(refusal) = serde_json::from_str(text).unwrap() else {
            panic!("{text}")
        };
        assert_eq!(refusal.code, RefusalCode::Unknown);
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = ServerMessage::Token(SecretText(Zeroizing::new("t0ken".to_owned())));
        assert!(token.to_json().contains("t0ken"));
        assert!(!format!("{token:?}").contains("t0ken"));
    }

    proptest! {
        #[test]
        fn nothing_that_comes_panics(text in r#"(\{"(element|proof|pinned|error)":)?(?s).{0,80}"#) {
            let _ = serde_json::from_str::<ClientMessage>(&text);
            let _ = serde_json::from_str::<ServerMessage>(&text);
        }

        #[test]
        fn bytes_survive(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let sent = ClientMessage::Proof(Bytes(bytes));
            let came: ClientMessage = serde_json::from_str(&sent.to_json()).unwrap();
            prop_assert_eq!(came, sent);
        }
    }
}
