//! Words that several commands use.

/// A number of sessions.
pub(crate) fn sessions(count: u64) -> String {
    match count {
        1 => "1 session".to_owned(),
        count => format!("{count} sessions"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_one() {
        let texts = [0, 1, 2].map(sessions);
        assert_eq!(texts, ["0 sessions", "1 session", "2 sessions"]);
    }
}
