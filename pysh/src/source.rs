//! The code of a cell, from the words of a command line.

use std::io::{self, Read};

/// Code that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The file of `@FILE` cannot be read.
    #[error("cannot read `{path}`")]
    File { path: String, source: io::Error },
    /// Standard input cannot be read.
    #[error("cannot read stdin")]
    Stdin { source: io::Error },
    /// It is text in another encoding, or no text.
    #[error("`{place}` is not UTF-8 (byte {offset})")]
    NotUtf8 { place: String, offset: usize },
}

impl SourceError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::File { .. } => Some("code that begins with `@` can be given on stdin, with `-`"),
            Self::Stdin { .. } => None,
            Self::NotUtf8 { .. } => Some("convert it, for example with `iconv -t UTF-8`"),
        }
    }
}

/// The code that the words mean: one `-` is stdin, one `@FILE` a file, all else
/// is code, joined by spaces. A word with a newline is never a file's name, so
/// that decorators can be typed.
pub(crate) fn read_source(words: Vec<String>, stdin: impl Read) -> Result<String, SourceError> {
    let [word] = words.as_slice() else {
        return Ok(words.join(" "));
    };
    if word == "-" {
        return from_stdin(stdin);
    }
    match word.strip_prefix('@') {
        Some(path) if !path.is_empty() && !path.contains('\n') => from_file(path),
        _ => Ok(words.into_iter().next().unwrap_or_default()),
    }
}

fn from_stdin(mut stdin: impl Read) -> Result<String, SourceError> {
    let mut bytes = Vec::new();
    stdin
        .read_to_end(&mut bytes)
        .map_err(|source| SourceError::Stdin { source })?;
    text(bytes, "stdin")
}

fn from_file(path: &str) -> Result<String, SourceError> {
    let bytes = std::fs::read(path).map_err(|source| SourceError::File {
        path: path.to_owned(),
        source,
    })?;
    let code = text(bytes, path)?;
    // Python skips a byte order mark in a file and refuses it in a string.
    Ok(match code.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => code,
    })
}

fn text(bytes: Vec<u8>, place: &str) -> Result<String, SourceError> {
    String::from_utf8(bytes).map_err(|error| SourceError::NotUtf8 {
        place: place.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn read(words: &[&str], stdin: &[u8]) -> Result<String, SourceError> {
        read_source(words.iter().map(|word| (*word).to_owned()).collect(), stdin)
    }

    #[test]
    fn words_are_joined_and_single_words_kept() {
        for (words, code) in [
            (&["1", "+", "1"][..], "1 + 1"),
            (&["print(1)\nprint(2)"], "print(1)\nprint(2)"),
            (&["@cache\ndef f(): ..."], "@cache\ndef f(): ..."),
            (&["@"], "@"),
            (&["-", "1"], "- 1"),
            (&[""], ""),
        ] {
            assert_eq!(read(words, b"unread").unwrap(), code);
        }
    }

    #[test]
    fn stdin_and_files_are_read_whole() {
        assert_eq!(read(&["-"], b"x = 1\r\n\0").unwrap(), "x = 1\r\n\0");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all("\u{feff}é = 1\n".as_bytes()).unwrap();
        let word = format!("@{}", file.path().display());
        assert_eq!(read(&[&word], b"").unwrap(), "é = 1\n");
    }

    #[test]
    fn what_cannot_be_read_or_is_no_text_is_named() {
        let error = read(&["@/no/such/file.py"], b"").unwrap_err();
        assert_eq!(error.to_string(), "cannot read `/no/such/file.py`");
        let error = read(&["-"], b"ab\xff").unwrap_err();
        assert_eq!(error.to_string(), "`stdin` is not UTF-8 (byte 2)");
    }
}
