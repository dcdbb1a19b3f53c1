//! `pyctl untrust CERT|FINGERPRINT`.

use pythond_identity::Fingerprint;
use pythond_protocol::ExitCode;
use pythond_transport::Report;
use serde_json::{Value, json};

use super::identity::{fingerprint, read_certificate, store};
use super::trust::{client_json, client_line};
use crate::args::UntrustArgs;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn untrust(args: &UntrustArgs, render: &Render) -> Outcome {
    let whom = match args.which.to_str().and_then(fingerprint) {
        Some(fingerprint) => fingerprint,
        None => Fingerprint::Certificate(read_certificate(&args.which)?.fingerprint()),
    };
    let store = store()?;
    let gone = store.untrust(whom)?;
    if gone.is_empty() {
        let report = Report::new(
            "not_trusted",
            format!("no trusted client is `{whom}`"),
            ExitCode::Refused,
        );
        let hint = "`pyctl trust` lists those that are";
        return Err(report.with_hint(hint).into());
    }
    let demanded = store.trusted_clients()?.are_demanded();
    if render.json {
        let gone: Vec<Value> = gone.iter().map(client_json).collect();
        let reply = json!({ "ok": true, "untrusted": gone, "client_certificates": demanded });
        render.line(&reply.to_string())?;
    } else {
        render.line("OK not trusted any more:")?;
        for client in &gone {
            render.line(&client_line(client))?;
        }
    }
    if !demanded {
        render.warning(
            "no client is trusted any more, so that no certificate is asked of any: the token \
             alone lets in whoever has it. `pyctl token rotate` makes another",
        );
    }
    Ok(ExitCode::Success)
}
