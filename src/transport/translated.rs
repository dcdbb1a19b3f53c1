//! A connection to a daemon of 0.4: our frames go in and our answers come out, what
//! is between them is [`crate::dialect`]'s.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use pythond_protocol::verbs::attach::DETACH;
use tungstenite::Utf8Bytes;

use crate::TransportError;
use crate::connection::{Connection, Incoming, Received};
use crate::dialect::{Exchange, Step, is_wrong_token};

/// What is under way on such a connection.
#[derive(Debug, Default)]
pub(crate) struct Translation {
    exchange: Option<Exchange>,
    /// What is to be asked, and when.
    later: Option<(Instant, String)>,
    /// Answers that nobody has taken yet.
    answers: VecDeque<Utf8Bytes>,
    /// The connection is a terminal: what is sent is no request any more.
    is_terminal: bool,
}

impl Translation {
    /// An answer that waits.
    pub(crate) fn answer(&mut self) -> Option<Utf8Bytes> {
        self.answers.pop_front()
    }

    /// What is to be sent for a frame, if anything is.
    pub(crate) fn begin(&mut self, text: &str) -> Option<String> {
        if self.is_terminal {
            // There it understands nothing else, and says nothing to it.
            if text == DETACH {
                return Some(text.to_owned());
            }
            if !text.starts_with("resize ")
                && let (exchange, Step::Answer(texts)) = Exchange::begin(text)
            {
                let texts = texts.into_iter().map(|text| exchange.tagged(text));
                self.answers.extend(texts.map(Utf8Bytes::from));
            }
            return None;
        }
        let (exchange, step) = Exchange::begin(text);
        self.exchange = Some(exchange);
        self.step(step)
    }

    /// What is to be sent now.
    fn step(&mut self, step: Step) -> Option<String> {
        match step {
            Step::Ask(text) => return Some(text),
            Step::AskLater(pause, text) => self.later = Some((Instant::now() + pause, text)),
            Step::Answer(texts) => {
                self.exchange = None;
                // An answer that nobody asked for may have come before the pause was over.
                self.later = None;
                self.answers.extend(texts.into_iter().map(Utf8Bytes::from));
            }
        }
        None
    }

    fn answered(&mut self, text: &str) -> Option<String> {
        let exchange = self.exchange.as_mut()?;
        self.is_terminal |= exchange.is_attach() && text == "OK attached";
        let step = exchange.answered(text);
        self.step(step)
    }
}

impl Connection {
    /// As [`Connection::receive_text`].
    pub(crate) fn receive_translated(
        &mut self,
        wake: &[BorrowedFd<'_>],
    ) -> Result<Received, TransportError> {
        loop {
            let Some(translation) = self.translation() else {
                return Err(TransportError::Closed);
            };
            if let Some(text) = translation.answer() {
                return Ok(Received::Text(text));
            }
            let at = translation.later.as_ref().map(|(at, _)| *at);
            let incoming = self.receive(wake, at);
            let Some(translation) = self.translation() else {
                return Err(TransportError::Closed);
            };
            let next = match incoming {
                Ok(Incoming::Woken) => return Ok(Received::Woken),
                Ok(Incoming::TimeIsUp) => translation.later.take().map(|(_, text)| text),
                Ok(Incoming::Text(text)) => translation.answered(&text),
                Err(error) => {
                    let exchange = translation.exchange.take();
                    match exchange.and_then(|exchange| exchange.broken()) {
                        Some(answer) => return Ok(Received::Text(answer.into())),
                        None => return Err(error),
                    }
                }
            };
            if let Some(text) = next {
                self.send_as_it_is(text)?;
            }
        }
    }

    /// Asks a daemon of 0.4 for its first word: false if it does not know our token.
    pub(crate) fn knows_token(&mut self, limit: Duration) -> Result<bool, TransportError> {
        self.send_as_it_is("help".to_owned())?;
        match self.receive(&[], Some(Instant::now() + limit))? {
            Incoming::Text(text) => Ok(!is_wrong_token(&text)),
            Incoming::Woken | Incoming::TimeIsUp => Err(TransportError::NoAnswer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached() -> Translation {
        let mut translation = Translation::default();
        let asked = translation.begin("attach work --json 24 80");
        assert_eq!(asked.as_deref(), Some("attach work 24 80"));
        assert_eq!(translation.answered("OK attached"), None);
        assert!(
            translation
                .answer()
                .is_some_and(|it| it.contains("\"rows\":24"))
        );
        translation
    }

    #[test]
    fn a_terminal_is_told_only_that_it_ends() {
        let mut translation = attached();
        assert_eq!(
            translation.begin("resize work --json --tag=resize 1 2"),
            None
        );
        assert_eq!(translation.answer(), None);
        assert_eq!(translation.begin("hold work --json --tag=hold"), None);
        let refusal = translation.answer().expect("it is refused");
        assert!(
            refusal.starts_with(r#"{"tag":"hold","error":"#),
            "{refusal}"
        );
        assert_eq!(translation.begin(DETACH).as_deref(), Some(DETACH));
    }

    #[test]
    fn a_cell_that_prints_it_makes_no_terminal() {
        let mut translation = Translation::default();
        translation.begin("run work --json\nprint('OK attached')");
        assert_eq!(translation.answered("OK attached"), None);
        assert!(translation.answer().is_some());
        assert_eq!(
            translation.begin("poll work --json").as_deref(),
            Some("poll work")
        );
    }

    #[test]
    fn an_answer_that_nobody_asked_for_leaves_no_question_behind() {
        let running = r#"{"cell_id":"00ab00000007","status":"running","output":""}"#;
        let done = r#"{"cell_id":"00ab00000007","status":"done","output":"1"}"#;
        let mut translation = Translation::default();
        translation.begin("wait work --json 00ab00000007").unwrap();
        assert_eq!(translation.answered(running), None);
        assert!(translation.later.is_some());
        assert_eq!(translation.answered(done), None);
        assert!(translation.answer().is_some());
        assert!(translation.later.is_none());
    }
}
