//! `status NAME`: what the host says, beside what is known here.

use pythond_protocol::ErrorReply;
use pythond_protocol::lane::{HostEvent, HostStatus, HostedSession};
use pythond_protocol::limits::LimitsInForce;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::list::SessionState;
use pythond_protocol::verbs::status::{StatusReply, StatusRequest, Tombstone};

use super::{Context, Reply};
use crate::session::{Question, SessionHandle};

pub(super) async fn handle(
    context: &Context,
    request: &StatusRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let session = context.registry.get(&request.session)?;
    let status = match session.ask(Question::Status).await {
        Ok(HostEvent::Status { status, .. }) => status,
        // A dead session has a status too; one that does not answer has not.
        Ok(_) => HostStatus::default(),
        // Nor has one that is stopped a running cell to tell.
        Err(_) if session.is_dead() || session.process().is_stopped() => HostStatus::default(),
        Err(error) => return Err(error),
    };
    let reply = merge(context, &session, status, session.death());
    Ok(match format {
        ReplyFormat::Plain => Reply::spaced_json(&reply),
        ReplyFormat::Json => Reply::json(&reply),
    })
}

fn limits_of(hosted: &HostedSession) -> Option<LimitsInForce> {
    hosted.limited_by.map(|enforced_by| LimitsInForce {
        limits: hosted.spec.limits,
        enforced_by,
    })
}

fn merge(
    context: &Context,
    session: &SessionHandle,
    status: HostStatus,
    death: Option<Tombstone>,
) -> StatusReply {
    let hosted = session.hosted();
    let state = match (&death, status.running.is_empty()) {
        (Some(_), _) => SessionState::Dead,
        (None, false) => SessionState::Running,
        (None, true) => session.state(),
    };
    StatusReply {
        state,
        running: status.running,
        vars: status.vars,
        cells: status.cells,
        ok: death.is_none(),
        session: hosted.spec.session.clone(),
        session_id: hosted.spec.session_id.clone(),
        generation: hosted.spec.generation,
        pid: session.process().pid(),
        queued: status.queued,
        python: hosted.python.clone(),
        start: hosted.start,
        cold_reason: hosted.cold_reason.clone(),
        cwd: hosted.spec.cwd.clone(),
        created_at: hosted.created_at.clone(),
        host: context.host.clone(),
        not_recorded: status.not_recorded.or_else(|| hosted.not_recorded.clone()),
        held_by: status.held_by,
        attached: status.attached,
        kept: status.kept.map(|kept| *kept),
        limits: limits_of(hosted),
        death,
        remote: None,
    }
}
