//! `pyctl trust [CERT]`.

use pythond_identity::TrustedClient;
use pythond_protocol::ExitCode;
use serde_json::{Value, json};

use super::identity::{certificate_json, read_certificate, store, validity, with};
use crate::args::TrustArgs;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn trust(args: &TrustArgs, render: &Render) -> Outcome {
    let Some(path) = &args.cert else {
        return list(render);
    };
    let certificate = read_certificate(path)?;
    let new = store()?.trust(&certificate)?;
    if render.json {
        let object = json!({ "ok": true, "trusted": new });
        render.line(&with(object, certificate_json(&certificate)).to_string())?;
        return Ok(ExitCode::Success);
    }
    let lines = [
        match new {
            true => "OK trusted; it needs the token as well".to_owned(),
            false => "OK it was trusted already".to_owned(),
        },
        format!("fingerprint: {}", certificate.fingerprint()),
        format!("public key: {}", certificate.key()),
        validity(&certificate),
    ];
    render.line(&lines.join("\n"))?;
    Ok(ExitCode::Success)
}

fn list(render: &Render) -> Outcome {
    let clients = store()?.trusted_clients()?.clients;
    if render.json {
        let clients: Vec<Value> = clients.iter().map(client_json).collect();
        render.line(&json!({ "ok": true, "clients": clients }).to_string())?;
    } else if clients.is_empty() {
        render.line("no trusted clients")?;
    }
    if !render.json {
        for client in &clients {
            render.line(&client_line(client))?;
        }
    }
    Ok(ExitCode::Success)
}

/// A client for programs.
pub(super) fn client_json(client: &TrustedClient) -> Value {
    match &client.certificate {
        Some(certificate) => certificate_json(certificate),
        None => json!({ "fingerprint": client.fingerprint.to_string() }),
    }
}

/// A client for people.
pub(super) fn client_line(client: &TrustedClient) -> String {
    match &client.certificate {
        Some(certificate) => format!(
            "  {} {} {}",
            certificate.key(),
            client.fingerprint,
            validity(certificate)
        ),
        None => format!("  {}", client.fingerprint),
    }
}
