//! `pysh version`.

use pythond_protocol::ExitCode;

use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn version(render: &Render) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    if render.json {
        render.line(&serde_json::json!({ "version": version }).to_string())?;
    } else {
        render.line(&format!("pythond {version}"))?;
    }
    Ok(ExitCode::Success)
}
