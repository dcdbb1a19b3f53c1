//! `pyctl pin [CERT [HOST:PORT]]`.

use pythond_identity::{PeerAddress, Pin};
use pythond_protocol::ExitCode;
use pythond_transport::Report;
use serde_json::{Value, json};

use super::identity::{certificate_json, read_certificate, store, validity, with};
use crate::args::PinArgs;
use crate::failure::{Failure, Outcome};
use crate::render::Render;

pub(super) fn pin(args: &PinArgs, render: &Render) -> Outcome {
    let Some(path) = &args.cert else {
        return list(render);
    };
    let address = args.address.as_deref().map(parse_address).transpose()?;
    let certificate = read_certificate(path)?;
    let store = store()?;
    let new = store.pin(&certificate, address.as_ref())?;
    let keys = match &address {
        Some(_) => {
            let pins = store.pins()?.pins;
            pins.iter().filter(|pin| pin.address == address).count()
        }
        None => 1,
    };
    let shown = address.as_ref().map(PeerAddress::to_string);
    if render.json {
        let object =
            json!({ "ok": true, "pinned": new, "address": shown, "keys_of_address": keys });
        render.line(&with(object, certificate_json(&certificate)).to_string())?;
        return Ok(ExitCode::Success);
    }
    let place = shown.unwrap_or_else(|| "the first address where it is met".to_owned());
    let mut lines = vec![
        match new {
            true => format!("OK pinned to {place}"),
            false => "OK it was pinned already".to_owned(),
        },
        format!("fingerprint: {}", certificate.fingerprint()),
        format!("public key: {}", certificate.key()),
        validity(&certificate),
    ];
    if keys > 1 {
        lines.push(format!(
            "{place} has {keys} pinned keys; forget the old one with `pyctl unpin FINGERPRINT`"
        ));
    }
    render.line(&lines.join("\n"))?;
    Ok(ExitCode::Success)
}

/// An address, or what is wrong with it.
pub(super) fn parse_address(text: &str) -> Result<PeerAddress, Failure> {
    text.parse::<PeerAddress>().map_err(|error| {
        Report::new("usage", error.to_string(), ExitCode::Usage)
            .with_hint("an address is HOST:PORT or [IPV6]:PORT")
            .into()
    })
}

fn list(render: &Render) -> Outcome {
    let pins = store()?.pins()?.pins;
    if render.json {
        let pins: Vec<Value> = pins.iter().map(pin_json).collect();
        render.line(&json!({ "ok": true, "pins": pins }).to_string())?;
    } else if pins.is_empty() {
        render.line("no pins")?;
    }
    if !render.json {
        for pin in &pins {
            render.line(&pin_line(pin))?;
        }
    }
    Ok(ExitCode::Success)
}

/// A pin for programs.
pub(super) fn pin_json(pin: &Pin) -> Value {
    json!({
        "address": pin.address.as_ref().map(PeerAddress::to_string),
        "public_key": pin.key.map(|key| key.to_string()),
        "fingerprint": pin.certificate.to_string(),
    })
}

/// A pin for people.
pub(super) fn pin_line(pin: &Pin) -> String {
    let address = match &pin.address {
        Some(address) => address.to_string(),
        None => "* (no address yet)".to_owned(),
    };
    match pin.key {
        Some(key) => format!("  {address} {key} {}", pin.certificate),
        None => format!("  {address} {}", pin.certificate),
    }
}
