//! `pyctl status`.

use pythond_protocol::ExitCode;
use pythond_protocol::shown::escape_controls;
use pythond_protocol::verbs::connect::{RemoteState, RemoteSummary};
use pythond_protocol::verbs::info::{Endpoint, InfoReply, ZygoteSummary};
use pythond_transport::{Address, Reply, Report};
use serde_json::Value;

use super::dispatch::{address, connect};
use crate::failure::Outcome;
use crate::render::Render;

/// Shows what answers at the daemon's address; no answer is told in the same
/// form, with the exit code of what is wrong.
pub(super) fn status(render: &Render) -> Outcome {
    let address = address()?.without_start();
    let info = connect(&address, render).and_then(|mut client| client.info());
    match info {
        Ok(reply) => {
            let text = if render.json {
                alive_json(&address, &reply)
            } else {
                alive(&address, &reply.value)
            };
            render.line(&text)?;
            Ok(ExitCode::Success)
        }
        Err(error) => {
            let report = Report::from(error);
            render.line(&silent(&address, &report, render.json))?;
            // What keeps from asking is told by its own code, unless it is that
            // nobody is there.
            let here = address.is_here();
            Ok(if here && !answers(&report) {
                ExitCode::NoDaemon
            } else {
                report.exit
            })
        }
    }
}

fn alive_json(address: &Address, reply: &Reply<InfoReply>) -> String {
    // From the text, so that fields of a newer daemon are kept.
    let mut object: Value = serde_json::from_str(reply.json()).unwrap_or_default();
    if let Value::Object(fields) = &mut object {
        fields.insert("alive".to_owned(), true.into());
        if !address.is_here() || reply.value.endpoint.is_empty() {
            // The daemon names its socket, which is not where we are.
            fields.insert("endpoint".to_owned(), address.to_string().into());
        }
    }
    object.to_string()
}

/// It answers, if only to say that it has no room, speaks TLS, or that we are not the
/// ones.
fn answers(report: &Report) -> bool {
    const ANSWERS: [&str; 5] = [
        "busy",
        "tls_needed",
        "unauthorized",
        "forbidden",
        "too_many_wrong_tokens",
    ];
    ANSWERS.contains(&report.code.as_str())
}

/// Whether it is alive; none if it could not be asked, for want of a pin or a token.
fn liveness(address: &Address, report: &Report) -> Option<bool> {
    let is_known = address.is_here() || report.exit == ExitCode::NoDaemon;
    match answers(report) {
        true => Some(true),
        false => is_known.then_some(false),
    }
}

/// The first line: a path, as in 0.4, or where else it is.
fn place(address: &Address) -> String {
    match address {
        Address::Unix(path) => format!("socket: {}", path.display()),
        address => format!("endpoint: {address}"),
    }
}

fn silent(address: &Address, report: &Report, json: bool) -> String {
    let place = place(address);
    let alive = liveness(address, report);
    // That nobody listens is what `alive: False` says already.
    let said = Some(report).filter(|report| report.code != "no_daemon");
    if json {
        let mut object = serde_json::json!({ "alive": alive, "endpoint": address.to_string() });
        if let Some(report) = said {
            object["error"] = serde_json::json!({ "code": report.code, "message": report.message });
            if let Some(hint) = &report.hint {
                object["error"]["hint"] = hint.as_str().into();
            }
        }
        return object.to_string();
    }
    let alive = match alive {
        Some(true) => "True",
        Some(false) => "False",
        None => "unknown",
    };
    let mut text = format!("{place}\nalive: {alive}");
    if let Some(report) = said {
        text.push_str(&format!("\nerror: {}", report.message));
        if let Some(hint) = &report.hint {
            text.push_str(&format!("\nhint: {hint}"));
        }
    }
    text
}

/// The lines for people; the first two are those of 0.4.
fn alive(address: &Address, info: &InfoReply) -> String {
    let mut lines = vec![place(address), "alive: True".to_owned()];
    // A daemon of 0.4 tells only what version it is, and of sessions.
    let tells_all = info.pid != 0;
    if tells_all {
        lines.push(format!("pid: {}", info.pid));
    }
    lines.push(format!("version: {}", info.version));
    if tells_all {
        lines.push(format!("uptime: {}", duration(info.uptime_s)));
    }
    lines.push(match info.max_sessions {
        0 => format!("sessions: {}", info.sessions),
        most => format!("sessions: {} of at most {most}", info.sessions),
    });
    lines.extend(network(info));
    lines.extend(info.zygotes.iter().map(zygote));
    lines.extend(info.remotes.iter().map(remote));
    // A daemon of another machine may say anything.
    escape_controls(&lines.join("\n")).into_owned()
}

/// Where other machines reach it, and who of them may come in.
fn network(info: &InfoReply) -> Vec<String> {
    let endpoint = |endpoint: &Endpoint| {
        let scheme = if endpoint.tls { "wss" } else { "ws" };
        format!("listening: {scheme}://{}", endpoint.address)
    };
    let mut lines: Vec<String> = info.listen.iter().map(endpoint).collect();
    if let Some(network) = &info.network {
        lines.extend(
            network
                .certificate
                .iter()
                .map(|it| format!("certificate: {it}")),
        );
        lines.push(match (&network.error, network.client_certificates) {
            (Some(error), _) => format!("clients: nobody is let in: {error}"),
            (None, true) => "clients: need the token and a trusted certificate".to_owned(),
            (None, false) => "clients: need the token".to_owned(),
        });
    }
    lines
}

fn zygote(zygote: &ZygoteSummary) -> String {
    let mut line = format!(
        "zygote: pid={} Python {} {} sessions={}",
        zygote.pid, zygote.version, zygote.python, zygote.sessions
    );
    if !zygote.preload.is_empty() {
        line.push_str(&format!(" preload={}", zygote.preload.join(",")));
    }
    if let Some(reason) = &zygote.cannot_fork {
        line.push_str(&format!(" (cannot fork: {reason})"));
    }
    line
}

/// A daemon of another machine, and how the way there is.
fn remote(remote: &RemoteSummary) -> String {
    let first = remote.endpoints.first().map_or("", String::as_str);
    let endpoint = remote.endpoint.as_deref().unwrap_or(first);
    let tls = if remote.tls { " tls" } else { "" };
    let state = match remote.state {
        RemoteState::Idle => "idle",
        RemoteState::Connecting => "connecting",
        RemoteState::Up => "up",
        RemoteState::Down => "down",
        RemoteState::Refused => "refused",
        RemoteState::Unknown => "unknown",
    };
    let mut line = format!("remote: {} -> {endpoint}{tls} {state}", remote.name);
    if let (RemoteState::Up, Some(rtt)) = (remote.state, remote.rtt_ms) {
        line.push_str(&format!(", round trip {rtt:.1} ms"));
    }
    if let (true, Some(error)) = (remote.state != RemoteState::Up, &remote.last_error) {
        line.push_str(&format!(": {error}"));
    }
    line
}

/// `2d 3h`, `3h 4m`, `4m 5s`, `5s`: the two greatest units.
fn duration(seconds: f64) -> String {
    let whole = std::time::Duration::try_from_secs_f64(seconds)
        .unwrap_or_default()
        .as_secs();
    let (days, hours) = (whole / 86400, whole / 3600 % 24);
    let (minutes, seconds) = (whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pythond_transport::{ClientError, TransportError};

    #[test]
    fn uptime_is_told_in_two_units() {
        for (seconds, text) in [
            (0.4, "0s"),
            (65.0, "1m 5s"),
            (3600.0 * 3.0 + 61.0, "3h 1m"),
            (90_000.0, "1d 1h"),
            (-1.0, "0s"),
            (f64::NAN, "0s"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn a_living_daemon_is_told_in_lines() {
        let info: InfoReply = serde_json::from_str(
            r#"{"ok":true,"endpoint":"unix:/s","pid":7,"version":"0.1.0","uptime_s":65.2,
            "sessions":2,"max_sessions":1024,"runtime_dir":"/r","zygotes":[
            {"pid":8,"python":"/usr/bin/python3","version":"3.11.7","preload":[],"sessions":1},
            {"pid":9,"python":"/v/bin/python","version":"3.12.1","preload":["numpy","pandas"],
             "sessions":1,"cannot_fork":"a second thread"}]}"#,
        )
        .unwrap();
        let address = Address::Unix("/s".into());
        assert_eq!(
            alive(&address, &info),
            "socket: /s\nalive: True\npid: 7\nversion: 0.1.0\nuptime: 1m 5s\n\
             sessions: 2 of at most 1024\n\
             zygote: pid=8 Python 3.11.7 /usr/bin/python3 sessions=1\n\
             zygote: pid=9 Python 3.12.1 /v/bin/python sessions=1 preload=numpy,pandas \
             (cannot fork: a second thread)"
        );
    }

    #[test]
    fn remotes_are_told_with_how_the_way_is() {
        let remotes: Vec<RemoteSummary> = serde_json::from_str(
            r#"[{"name":"far","session":"far","endpoints":["10.0.0.5:7399"],"tls":true,
            "state":"up","endpoint":"10.0.0.5:7399","rtt_ms":0.42,"connections":1,
            "last_error":"cut"},
            {"name":"gone","session":"gone","endpoints":["10.0.0.6:7399","10.0.0.7:1"],
            "tls":false,"state":"down","connections":0,"last_error":"no answer"}]"#,
        )
        .unwrap();
        let lines: Vec<_> = remotes.iter().map(remote).collect();
        assert_eq!(
            lines,
            [
                "remote: far -> 10.0.0.5:7399 tls up, round trip 0.4 ms",
                "remote: gone -> 10.0.0.6:7399 down: no answer"
            ]
        );
    }

    #[test]
    fn a_daemon_elsewhere_cannot_steer_the_terminal() {
        let info: InfoReply = serde_json::from_str(
            r#"{"ok":true,"endpoint":"","pid":0,"version":"0.4\u001b[2J","uptime_s":0,
            "sessions":0,"max_sessions":0,"runtime_dir":"","zygotes":[]}"#,
        )
        .unwrap();
        let text = alive(&Address::Unix("/s".into()), &info);
        assert!(text.contains("version: 0.4\\x1b[2J\n"), "{text:?}");
    }

    #[test]
    fn no_daemon_is_told_in_the_same_form() {
        let address = Address::Unix("/s".into());
        let none = Report::from(ClientError::NoDaemon {
            socket: "/s".into(),
        });
        assert_eq!(silent(&address, &none, false), "socket: /s\nalive: False");
        assert_eq!(
            silent(&address, &none, true),
            r#"{"alive":false,"endpoint":"unix:/s"}"#
        );
        let busy = Report::from(ClientError::from(TransportError::Busy));
        assert_eq!(
            silent(&address, &busy, false),
            "socket: /s\nalive: True\nerror: the daemon is busy: it has as many connections as it \
             can serve\nhint: nothing was submitted; try again when other clients have left"
        );
    }
}
