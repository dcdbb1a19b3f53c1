//! `pyctl pair HOST:PORT`: takes the code that the other machine shows.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, ErrorKind, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use pythond_identity::{PeerAddress, ValidityState};
use pythond_pairing::Code;
use pythond_protocol::verbs::connect::ConnectOptions;
use pythond_protocol::verbs::list::{SessionState, SessionSummary};
use pythond_protocol::{ExitCode, SessionName};
use pythond_transport::{Paired, Report, SSH_SCHEME};
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::PairArgs;
use crate::commands::dispatch;
use crate::commands::identity::{certificate_json, home, now, store, validity, with};
use crate::commands::pin::parse_address;
use crate::failure::{Failure, Outcome};
use crate::render::Render;

/// More than anybody types for a code.
const MAX_LINE: u64 = 256;

pub(super) fn accept(address: &str, args: &PairArgs, render: &Render) -> Outcome {
    if address.starts_with(SSH_SCHEME) {
        let message = "a daemon that ssh leads to needs no pairing";
        return Err(Report::new("usage", message, ExitCode::Usage)
            .with_hint(format!("`pyctl connect NAME {address}`"))
            .into());
    }
    let peer = parse_address(address)?;
    // What can be wrong here is found before the code is used up.
    if let Some(name) = &args.connect {
        see_that_it_is_free(name, render)?;
    }
    let has_certificate = see_to_certificate()?;
    if let Some(path) = &args.token_file {
        TokenFile::see_that_it_is_not_there(path)?;
    }
    let code = read_code(&peer, render)?;
    if !has_certificate {
        store()?.own_or_make(now())?;
        render.note("this machine has a certificate now; `pyctl cert` shows it");
    }
    // Not before: who ends this while it waits for the code leaves no file.
    let file = args.token_file.as_deref().map(TokenFile::create);
    let mut file = file.transpose()?;
    let paired = pythond_transport::pair(&peer, home()?, &code).map_err(Report::from)?;
    if let Some(file) = &mut file {
        file.keep(paired.token.reveal())?;
    }
    let connected = match &args.connect {
        Some(name) => Some(connect(name, &peer, &paired, args, render)?),
        None => None,
    };
    if render.json {
        let object = json!({
            "ok": true,
            "address": peer.to_string(),
            "pinned": paired.pinned,
            "token_file": args.token_file,
            "connected": connected,
        });
        render.line(&with(object, certificate_json(&paired.certificate)).to_string())?;
        return Ok(ExitCode::Success);
    }
    let mut lines = vec![
        format!("OK paired with {peer}; its key is pinned, and this machine is trusted there"),
        format!("fingerprint: {}", paired.certificate.fingerprint()),
        format!("public key: {}", paired.certificate.key()),
        validity(&paired.certificate),
    ];
    lines.push(match (&args.connect, &args.token_file) {
        (Some(name), _) => format!("OK connected {name} -> {peer} tls"),
        (None, Some(file)) => format!(
            "next: pyctl connect NAME {peer} --tls --token-file {}",
            file.display()
        ),
        (None, None) => format!(
            "next: pyctl connect NAME {peer} --tls --token-stdin, with what `pyctl token show` \
             prints there"
        ),
    });
    render.line(&lines.join("\n"))?;
    Ok(ExitCode::Success)
}

/// Whether this machine has a certificate; one that the other machine would refuse is
/// told here. None is made before there is a code.
fn see_to_certificate() -> Result<bool, Failure> {
    let Some(own) = store()?.own(now())? else {
        return Ok(false);
    };
    let certificate = &own.pair.certificate;
    let wrong = match certificate.validity().at(now()) {
        ValidityState::Valid => return Ok(true),
        ValidityState::Expired => "has expired",
        ValidityState::NotYetValid => "is not valid yet",
    };
    let message = format!(
        "this machine's certificate {wrong}: `{}`",
        own.pair.certificate_path.display()
    );
    Err(Report::new("bad_certificate", message, ExitCode::Refused)
        .with_hint("compare this machine's clock; if it is right, run `pyctl cert rotate --now`")
        .into())
}

fn see_that_it_is_free(name: &SessionName, render: &Render) -> Result<(), Failure> {
    let mut client = dispatch::connect(&dispatch::address()?, render)?;
    let list = client.list()?.value;
    let lives = |it: &SessionSummary| it.session == *name && it.state != SessionState::Dead;
    if !list.sessions.iter().any(lives) && !list.remotes.iter().any(|it| it.name == *name) {
        return Ok(());
    }
    let message = format!("`{name}` is in use here");
    Err(Report::new("session_exists", message, ExitCode::Refused)
        .with_hint("choose another name, or free it with `pyctl disconnect` or `pysh kill`")
        .into())
}

fn connect(
    name: &SessionName,
    peer: &PeerAddress,
    paired: &Paired,
    args: &PairArgs,
    render: &Render,
) -> Result<serde_json::Value, Failure> {
    let token_file = match &args.token_file {
        Some(path) => std::path::absolute(path)
            .ok()
            .and_then(|path| path.to_str().map(str::to_owned)),
        None => None,
    };
    let token = match &token_file {
        Some(_) => None,
        None => Some(paired.token.reveal().to_owned()),
    };
    let options = ConnectOptions {
        endpoints: vec![peer.to_string()],
        tls: true,
        token,
        token_file,
        ..ConnectOptions::default()
    };
    let connected = dispatch::address()
        .and_then(|address| dispatch::connect(&address, render))
        .and_then(|mut client| client.connect_remote(name, &options));
    match connected {
        Ok(reply) => Ok(serde_json::to_value(&reply.value.remote).unwrap_or_default()),
        Err(error) => {
            render.note(&format!(
                "the two machines are paired; only `{name}` is not connected"
            ));
            Err(error.into())
        }
    }
}

/// What somebody types, or one line of what comes.
fn read_code(peer: &PeerAddress, render: &Render) -> Result<Code, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        render.prompt(&format!(
            "code that `pyctl pair` shows on {}: ",
            peer.host()
        ));
    }
    let mut line = Zeroizing::new(Vec::new());
    let read = stdin.lock().take(MAX_LINE).read_until(b'\n', &mut line);
    let text = match (read, std::str::from_utf8(&line)) {
        (Ok(1..), Ok(text)) => text,
        _ => "",
    };
    text.parse::<Code>().map_err(|error| {
        Report::new("usage", error.to_string(), ExitCode::Usage)
            .with_hint("type it as it is shown there; nothing was tried")
            .into()
    })
}

/// A file that is there before the code is used, and goes if nothing comes of it.
struct TokenFile {
    path: PathBuf,
    file: File,
    is_kept: bool,
}

impl TokenFile {
    fn see_that_it_is_not_there(path: &Path) -> Result<(), Report> {
        match path.symlink_metadata() {
            Ok(_) => Err(Self::is_there(path)),
            Err(_) => Ok(()),
        }
    }

    fn is_there(path: &Path) -> Report {
        let message = format!("`{}` is there already", path.display());
        Report::new("usage", message, ExitCode::Usage)
            .with_hint("name a file that is not there; nothing was tried")
    }

    fn create(path: &Path) -> Result<Self, Report> {
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let file = created.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Self::is_there(path),
            _ => {
                let message = format!("cannot write `{}`: {error}", path.display());
                Report::new("usage", message, ExitCode::Usage)
            }
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            is_kept: false,
        })
    }

    fn keep(&mut self, token: &str) -> Result<(), Failure> {
        let text = Zeroizing::new(format!("{token}\n"));
        let written = self.file.write_all(text.as_bytes());
        written
            .and_then(|()| self.file.sync_all())
            .map_err(|error| {
                let message = format!("cannot write `{}`: {error}", self.path.display());
                Report::new("token_file", message, ExitCode::Refused).with_hint(
                    "the two machines are paired; `pyctl token show` there prints the token",
                )
            })?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        if !self.is_kept {
            // It is empty, or cut: of no use to anybody.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
