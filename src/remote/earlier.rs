//! A request to a remote daemon of 0.4: it answers in order and one at a time, so
//! each has a connection of its own.

use pythond_transport::{Exchange, Spoken, Step};

use super::Remote;
use super::error::RemoteError;
use super::link::{Lost, TOO_GREAT};
use super::own::OwnExchange;
use crate::handlers::Caller;

/// Why there is no answer.
pub(super) enum Unanswered {
    /// There is no way to it.
    NoWay(RemoteError),
    /// The way broke, and the request may be sent again.
    Broke(String),
    /// It speaks as we do by now.
    SpeaksOurs,
}

/// Asks what this frame of ours says. Events go to the caller, the answer is given
/// back.
pub(super) async fn ask(
    remote: &Remote,
    frame: &str,
    caller: &Caller,
) -> Result<String, Unanswered> {
    let (mut exchange, mut step) = Exchange::begin(frame);
    let mut own: Option<OwnExchange> = None;
    loop {
        let text = match step {
            Step::Ask(text) => text,
            Step::AskLater(pause, text) => {
                tokio::time::sleep(pause).await;
                text
            }
            Step::Answer(mut texts) => {
                let answer = texts.pop().unwrap_or_default();
                for event in texts {
                    caller.pass_on(&event).await;
                }
                return Ok(answer);
            }
        };
        let connection = match &mut own {
            Some(connection) => connection,
            None => {
                let dialled = remote.dial().await.map_err(Unanswered::NoWay)?;
                if dialled.spoken == Spoken::Ours {
                    return Err(Unanswered::SpeaksOurs);
                }
                own.insert(OwnExchange::over(dialled))
            }
        };
        step = match connection.ask_as_it_is(text).await {
            Ok(text) => exchange.answered(&text),
            Err(lost) => {
                let why = match lost {
                    Lost::Broken(why) => why,
                    Lost::NoWay(error) => return Err(Unanswered::NoWay(error)),
                    Lost::AnswerTooBig => TOO_GREAT.to_owned(),
                    Lost::TooSlow | Lost::TooBig => "it closed the connection".to_owned(),
                };
                return exchange.broken().ok_or(Unanswered::Broke(why));
            }
        };
    }
}
