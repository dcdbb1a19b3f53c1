//! `pyctl cert [show|rotate]`.

use std::time::Duration;

use pythond_identity::{Overlap, OwnIdentity, OwnPair, Rotation};
use pythond_protocol::ExitCode;
use serde_json::{Value, json};

use super::identity::{certificate_json, date, now, store, validity, with};
use crate::args::{CertArgs, CertCommand, RotateArgs};
use crate::failure::Outcome;
use crate::render::Render;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn cert(args: &CertArgs, render: &Render) -> Outcome {
    let store = store()?;
    match &args.command {
        None | Some(CertCommand::Show) => show(&store.own_or_make(now())?, None, render),
        Some(CertCommand::Rotate(RotateArgs {
            overlap,
            now: at_once,
        })) => {
            let overlap = match at_once {
                true => Overlap::None,
                false => Overlap::For(DAY * u32::from(*overlap)),
            };
            let (done, own) = store.rotate(overlap, now())?;
            show(&own, Some(done), render)
        }
    }
}

fn show(own: &OwnIdentity, done: Option<Rotation>, render: &Render) -> Outcome {
    let text = if render.json {
        as_json(own, done).to_string()
    } else {
        as_text(own, done)
    };
    render.line(&text)?;
    Ok(ExitCode::Success)
}

fn as_json(own: &OwnIdentity, done: Option<Rotation>) -> Value {
    let mut object = with(json!({ "ok": true }), pair_json(&own.pair));
    if let Some(done) = done {
        object["done"] = word(done).into();
    }
    if let Some(announced) = &own.announced {
        let used_from = json!({ "used_from": date(announced.used_from) });
        object["next"] = with(pair_json(&announced.pair), used_from);
    }
    object
}

fn pair_json(pair: &OwnPair) -> Value {
    let paths = json!({
        "cert": pair.certificate_path.display().to_string(),
        "key": pair.key_path.display().to_string(),
    });
    with(paths, certificate_json(&pair.certificate))
}

fn word(done: Rotation) -> &'static str {
    match done {
        Rotation::Made => "made",
        Rotation::Announced => "announced",
        Rotation::Replaced => "replaced",
        Rotation::Finished => "finished",
        Rotation::Repaired => "repaired",
    }
}

fn as_text(own: &OwnIdentity, done: Option<Rotation>) -> String {
    let mut lines = Vec::new();
    lines.extend(done.map(|done| {
        match done {
            Rotation::Made => "OK made a certificate; there was none\n",
            Rotation::Announced => "OK announced a new certificate; the old one stays in use\n",
            Rotation::Replaced => "OK made a new certificate; the old key is gone\n",
            Rotation::Finished => "OK the announced certificate is used; the old key is gone\n",
            Rotation::Repaired => "OK made a new certificate; the old one was of no use\n",
        }
        .to_owned()
    }));
    lines.push("this machine's certificate:".to_owned());
    lines.extend(pair_lines(&own.pair));
    let mut copied = &own.pair;
    if let Some(announced) = &own.announced {
        let from = date(announced.used_from);
        lines.push(format!("\nits next certificate, used from {from}:"));
        lines.extend(pair_lines(&announced.pair));
        copied = &announced.pair;
    }
    let path = copied.certificate_path.display();
    lines.push(format!(
        "\nIf this machine is the server:\n  \
         copy {path} to the client, and type there: pyctl pin COPY HOST:PORT\n\
         If this machine is the client:\n  \
         copy {path} to the server, and type there: pyctl trust COPY\n\
         Compare the fingerprints on both machines. Never copy the key."
    ));
    lines.join("\n")
}

/// The first three are those of 0.4.
fn pair_lines(pair: &OwnPair) -> [String; 5] {
    let certificate = &pair.certificate;
    [
        format!("cert: {}", pair.certificate_path.display()),
        format!("key:  {}", pair.key_path.display()),
        format!("fingerprint: {}", certificate.fingerprint()),
        format!("public key: {}", certificate.key()),
        validity(certificate),
    ]
}
