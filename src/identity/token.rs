//! The token that a remote client must know.

use std::fmt;

use pythond_private_fs::Strictness;
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::IdentityError;
use crate::store::{Store, read};

/// Where 0.4 has it too: an object with `token`; what else is in it is kept.
pub(crate) const FILE: &str = "daemon.json";
const LIMIT_BYTES: u64 = 64 * 1024;
const NEW_BYTES: usize = 32;
/// 0.4's tokens have 32 characters.
const SHORTEST: usize = 32;
const LONGEST: usize = 1024;

/// What is wrong with a token or its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The file is no JSON object.
    #[error("it is no JSON object")]
    NotJson,
    /// It has no token, or one that is no text.
    #[error("it has no token")]
    Missing,
    /// The token can be guessed.
    #[error("its token is shorter than {SHORTEST} characters")]
    Short,
    /// The token cannot be sent in a header.
    #[error("its token is too long, or has characters that are not visible ASCII")]
    Characters,
}

/// A token. Never shows itself but by [`Token::reveal`].
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Takes a token that came from somewhere else.
    ///
    /// # Errors
    /// [`TokenError::Short`], [`TokenError::Characters`].
    pub fn new(text: &str) -> Result<Self, TokenError> {
        if text.len() > LONGEST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Err(TokenError::Characters)
        } else if text.len() < SHORTEST {
            Err(TokenError::Short)
        } else {
            Ok(Self(Zeroizing::new(text.to_owned())))
        }
    }

    /// 256 bits from the operating system, as 64 hexadecimal digits.
    fn random() -> Result<Self, IdentityError> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut bytes = Zeroizing::new([0; NEW_BYTES]);
        getrandom::fill(&mut *bytes).map_err(|_| IdentityError::Random)?;
        let mut text = Zeroizing::new(String::with_capacity(2 * NEW_BYTES));
        for byte in *bytes {
            for half in [byte >> 4, byte & 15] {
                text.push(char::from(DIGITS[usize::from(half)]));
            }
        }
        Ok(Self(text))
    }

    /// The token itself, to be sent to its daemon or shown to its owner.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether somebody knows it. The time this takes says nothing of the token,
    /// nor of its length.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> bool {
        let own = digest(&SHA256, self.0.as_bytes());
        let presented = digest(&SHA256, presented);
        own.as_ref().ct_eq(presented.as_ref()).into()
    }
}

impl Store {
    /// The token; none if it was never made.
    ///
    /// # Errors
    /// [`IdentityError::Token`] if the file is damaged, [`IdentityError::Fs`] if
    /// others can read it.
    pub fn token(&self) -> Result<Option<Token>, IdentityError> {
        let Some(content) = self.token_file()? else {
            return Ok(None);
        };
        let token = parse(&content).and_then(|object| match object.get("token") {
            Some(Value::String(token)) => Token::new(token),
            _ => Err(TokenError::Missing),
        });
        token.map(Some).map_err(|reason| self.damaged_token(reason))
    }

    /// The token, made if there is none.
    ///
    /// # Errors
    /// As [`Self::token`].
    pub fn token_or_make(&self) -> Result<Token, IdentityError> {
        if let Some(token) = self.token()? {
            return Ok(token);
        }
        let _lock = self.lock()?;
        match self.token()? {
            Some(token) => Ok(token),
            None => self.write_token(Map::new()),
        }
    }

    /// Makes a new token in place of the one that there is, if any. The old one
    /// is of no use from then on.
    ///
    /// # Errors
    /// [`IdentityError::Fs`].
    pub fn rotate_token(&self) -> Result<Token, IdentityError> {
        let _lock = self.lock()?;
        let rest = match self.token_file() {
            Ok(Some(content)) => parse(&content).unwrap_or_default(),
            Ok(None) => Map::new(),
            // What others could read is what a new one is for.
            Err(IdentityError::Fs(pythond_private_fs::PrivateFsError::FileOpenToOthers {
                ..
            })) => Map::new(),
            Err(error) => return Err(error),
        };
        self.write_token(rest)
    }

    fn token_file(&self) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
        let content = read(&self.root, FILE, LIMIT_BYTES, Strictness::Secret)?;
        Ok(content.map(Zeroizing::new))
    }

    fn write_token(&self, mut object: Map<String, Value>) -> Result<Token, IdentityError> {
        let token = Token::random()?;
        object.insert("token".to_owned(), token.reveal().into());
        let text = Zeroizing::new(format!("{}\n", Value::Object(object)));
        self.root.write_whole(FILE, text.as_bytes())?;
        Ok(token)
    }

    /// The file that has the token.
    #[must_use]
    pub fn token_path(&self) -> std::path::PathBuf {
        self.root.path().join(FILE)
    }

    fn damaged_token(&self, reason: TokenError) -> IdentityError {
        let path = self.token_path();
        IdentityError::Token { path, reason }
    }
}

fn parse(content: &[u8]) -> Result<Map<String, Value>, TokenError> {
    serde_json::from_slice(content).map_err(|_| TokenError::NotJson)
}
