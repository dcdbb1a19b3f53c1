//! `pyctl token show|rotate`.

use std::env;

use pythond_protocol::ExitCode;
use pythond_protocol::shown::escape_controls;
use serde_json::json;

use super::identity::store;
use crate::args::{TokenArgs, TokenCommand};
use crate::failure::Outcome;
use crate::render::Render;

/// Only `show` prints a token, and to stdout alone: whoever rotates one may have
/// an audience.
pub(super) fn token(args: &TokenArgs, render: &Render) -> Outcome {
    let store = store()?;
    let path = store.token_path().display().to_string();
    if let Some(host) = env::var_os("PYTHOND_HOST").filter(|host| !host.is_empty()) {
        render.warning(&format!(
            "`PYTHOND_HOST` is set: commands go to `{}`, and the token is that of this machine",
            escape_controls(&host.to_string_lossy())
        ));
    }
    match args.command {
        TokenCommand::Show => {
            let token = store.token_or_make()?;
            if render.json {
                let object = json!({ "ok": true, "token": token.reveal(), "path": path });
                render.line(&object.to_string())?;
            } else {
                render.line(token.reveal())?;
            }
        }
        TokenCommand::Rotate => {
            store.rotate_token()?;
            if render.json {
                render.line(&json!({ "ok": true, "path": path }).to_string())?;
            } else {
                render.line("OK made a new token; `pyctl token show` prints it")?;
            }
        }
    }
    Ok(ExitCode::Success)
}
