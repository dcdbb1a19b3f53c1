//! `info`.

use pythond_protocol::verbs::info::{InfoReply, NetworkSummary, ZygoteSummary};

use super::{Context, Reply};
use crate::network::Network;

fn summary(network: &Network) -> NetworkSummary {
    match network.keys.current() {
        Ok(keys) => NetworkSummary {
            certificate: Some(keys.certificate().to_string()),
            client_certificates: keys.demand_certificates(),
            error: None,
        },
        Err(why) => NetworkSummary {
            certificate: None,
            client_certificates: true,
            error: Some(why.to_string()),
        },
    }
}

pub(super) fn handle(context: &Context) -> Reply {
    let sessions = context.registry.all();
    let zygotes = context.hosts.zygotes.alive();
    let summaries = zygotes.iter().map(|zygote| {
        let info = &zygote.info;
        let own = sessions
            .iter()
            .filter(|session| !session.is_dead() && session.hosted().zygote_pid == info.pid);
        ZygoteSummary {
            pid: info.pid,
            python: info.executable.clone(),
            version: info.python_version.clone(),
            preload: info.preload.clone(),
            sessions: own.count() as u64,
            cannot_fork: info.cannot_fork.clone(),
        }
    });
    Reply::json(&InfoReply {
        ok: true,
        endpoint: format!("unix:{}", context.socket.display()),
        listen: context.endpoints.clone(),
        network: context.network.as_deref().map(summary),
        pid: std::process::id(),
        boot: Some(context.hosts.events.boot().to_owned()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: context.started.elapsed().as_secs_f64(),
        sessions: context.registry.live() as u64,
        max_sessions: context.registry.max_sessions() as u64,
        runtime_dir: context.hosts.dir.path().display().to_string(),
        zygotes: summaries.collect(),
        remotes: context.remotes.summaries(),
    })
}
