//! `pyctl pair`: shows a code, and waits until somebody has used it.

use std::time::Duration;

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::pair::{DEFAULT_SPAN, PairEvent, PairReply, PairingCode};
use pythond_transport::Streamed;

use crate::commands::dispatch;
use crate::failure::{Failure, Outcome};
use crate::render::Render;

pub(super) fn offer(span: Option<Duration>, render: &Render) -> Outcome {
    let mut client = dispatch::connect(&dispatch::address()?, render)?;
    let mut stream = client.pair(span.unwrap_or(DEFAULT_SPAN))?;
    loop {
        match stream.next(&[])? {
            Streamed::Event(event) if render.json => render.line(event.json())?,
            Streamed::Event(event) => match &event.value {
                Some(PairEvent::Code(code)) => show(code, render)?,
                Some(PairEvent::WrongCode {
                    address,
                    tries_left,
                }) => render.warning(&wrong(address, *tries_left)),
                None => {}
            },
            Streamed::Reply(reply) => {
                let text = match render.json {
                    true => reply.json().to_owned(),
                    false => done(&reply.value),
                };
                render.line(&text)?;
                return Ok(ExitCode::Success);
            }
            Streamed::Woken => {}
        }
    }
}

fn show(it: &PairingCode, render: &Render) -> Result<(), Failure> {
    if !it.client_certificates {
        render.warning(
            "no client is trusted so far; once one is, every client from a network needs a \
             certificate that is trusted, and the token alone lets nobody in any more",
        );
    }
    let mut lines = vec![format!("code: {}", it.code)];
    let commands = it.listen.iter().map(|address| {
        let address = reachable(address, &it.host);
        format!("on the other machine: pyctl pair {address}")
    });
    lines.extend(commands);
    lines.push(format!("fingerprint: {}", it.certificate));
    lines.push(format!(
        "valid for {} s; {} wrong tries end it, and so does Ctrl-C",
        it.lapses_in_s, it.tries
    ));
    render.line(&lines.join("\n"))
}

/// An address that means the same on another machine: where every address is listened
/// on, the name of this one.
fn reachable(address: &str, host: &str) -> String {
    let everywhere = ["0.0.0.0:", "[::]:"];
    match everywhere.iter().find_map(|it| address.strip_prefix(it)) {
        Some(port) => format!("{host}:{port}"),
        None => address.to_owned(),
    }
}

fn wrong(address: &str, tries_left: u32) -> String {
    match tries_left {
        1 => format!("a wrong code came from {address}; 1 try is left"),
        left => format!("a wrong code came from {address}; {left} tries are left"),
    }
}

fn done(reply: &PairReply) -> String {
    let client = &reply.client;
    let trusted = match client.trusted {
        true => "it is trusted now",
        false => "it was trusted already",
    };
    [
        format!("OK paired with {}; {trusted}", client.address),
        format!("fingerprint: {}", client.fingerprint),
        format!("public key: {}", client.public_key),
        format!("subject: {}", client.subject),
    ]
    .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_said_by_name() {
        for (address, shown) in [
            ("0.0.0.0:7399", "gpu:7399"),
            ("[::]:7399", "gpu:7399"),
            ("10.0.0.5:7399", "10.0.0.5:7399"),
            ("[::1]:7399", "[::1]:7399"),
        ] {
            assert_eq!(reachable(address, "gpu"), shown);
        }
    }
}
