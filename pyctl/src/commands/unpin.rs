//! `pyctl unpin HOST:PORT|FINGERPRINT`.

use pythond_identity::PeerAddress;
use pythond_protocol::ExitCode;
use pythond_transport::Report;
use serde_json::{Value, json};

use super::identity::{fingerprint, store};
use super::pin::{pin_json, pin_line};
use crate::args::UnpinArgs;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn unpin(args: &UnpinArgs, render: &Render) -> Outcome {
    let gone = if let Some(whose) = fingerprint(&args.which) {
        store()?.unpin_key(whose)?
    } else {
        let address: PeerAddress = args.which.parse().map_err(|_| {
            let message = format!("`{}` is no address and no fingerprint", args.which);
            Report::new("usage", message, ExitCode::Usage).with_hint("`pyctl pin` lists the pins")
        })?;
        store()?.unpin_address(&address)?
    };
    if gone.is_empty() {
        let message = format!("nothing is pinned as `{}`", args.which);
        let report = Report::new("not_pinned", message, ExitCode::Refused);
        return Err(report.with_hint("`pyctl pin` lists the pins").into());
    }
    if render.json {
        let gone: Vec<Value> = gone.iter().map(pin_json).collect();
        render.line(&json!({ "ok": true, "unpinned": gone }).to_string())?;
    } else {
        render.line("OK not pinned any more:")?;
        for pin in &gone {
            render.line(&pin_line(pin))?;
        }
    }
    Ok(ExitCode::Success)
}
