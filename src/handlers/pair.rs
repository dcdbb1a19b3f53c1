//! `pair`: a code that lets one client in, for as long as whoever asked for it waits.

use pythond_pairing::Code;
use pythond_protocol::verbs::pair::{PairEvent, PairReply, PairRequest, PairingCode};
use pythond_protocol::{ErrorCode, ErrorReply};
use tokio::time::Instant;

use super::{Caller, Context, Reply};
use crate::network::pairing::{News, TRIES};

pub(super) async fn handle(
    context: &Context,
    caller: &Caller,
    request: PairRequest,
) -> Result<Reply, ErrorReply> {
    if !caller.is_local {
        return Err(ErrorReply::new(
            ErrorCode::LocalOnly,
            "`pair` is for who is on the daemon's own machine",
        )
        .with_hint("run `pyctl pair` there"));
    }
    let with_tls = context.endpoints.iter().filter(|endpoint| endpoint.tls);
    let listen: Vec<String> = with_tls.map(|endpoint| endpoint.address.clone()).collect();
    let network = match &context.network {
        Some(network) if !listen.is_empty() => network,
        _ => {
            return Err(ErrorReply::new(
                ErrorCode::NotListening,
                "the daemon does not listen for other machines by TLS",
            )
            .with_hint(
                "stop it with `pyctl stop --keep-sessions`, then start it with `pyctl start -d \
                 --listen HOST:PORT`",
            ));
        }
    };
    let keys = network.keys.current().map_err(|why| {
        let message = format!("nobody is let in from a network: {why}");
        ErrorReply::new(ErrorCode::NotListening, message)
    })?;
    let code = Code::random().map_err(|error| {
        let message = format!("the system has no random numbers: {error}");
        ErrorReply::new(ErrorCode::Internal, message)
    })?;
    let text = code.reveal();
    let Some(mut open) = network.pairing.open(code) else {
        return Err(
            ErrorReply::new(ErrorCode::Busy, "another `pyctl pair` has a code").with_hint(
                "use that code, or end that command; its code is of no use any more then",
            ),
        );
    };
    let shown = PairingCode {
        code: text.to_string(),
        lapses_in_s: request.span.as_secs_f64(),
        tries: TRIES,
        host: context.host.clone(),
        listen,
        certificate: keys.certificate().to_string(),
        client_certificates: keys.demand_certificates(),
    };
    let mut lapse = Some(Instant::now() + request.span);
    caller.event(&PairEvent::Code(Box::new(shown))).await;
    loop {
        let lapsed = async {
            match lapse {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let news = tokio::select! {
            biased;
            news = open.news() => news,
            () = context.stop.cancelled() => {
                return Err(ErrorReply::new(ErrorCode::Stopping, "the daemon stops"));
            }
            () = lapsed => {
                if open.withdraw() {
                    return Err(ErrorReply::new(
                        ErrorCode::Lapsed,
                        "the code has lapsed, and nobody was paired",
                    )
                    .with_hint("`pyctl pair` makes another"));
                }
                // Somebody has just used it, and is not kept waiting for long.
                lapse = None;
                continue;
            }
        };
        match news {
            Some(News::Wrong {
                address,
                tries_left,
            }) => {
                let event = PairEvent::WrongCode {
                    address,
                    tries_left,
                };
                caller.event(&event).await;
            }
            Some(News::Paired(client)) => return Ok(Reply::json(&PairReply { ok: true, client })),
            Some(News::Failed(why)) => {
                let message = format!("somebody knew the code, and nobody was paired: {why}");
                return Err(ErrorReply::new(ErrorCode::PairingFailed, message)
                    .with_hint("`pyctl pair` makes another code"));
            }
            // Nobody else can say anything: the last try was wrong.
            None => {
                let message = format!(
                    "{TRIES} wrong codes were tried: the code is of no use any more, and nobody \
                     was paired"
                );
                return Err(
                    ErrorReply::new(ErrorCode::PairingFailed, message).with_hint(
                        "if it was you, `pyctl pair` makes another code; if it was not, somebody \
                         in the network guesses, or is in between",
                    ),
                );
            }
        }
    }
}
