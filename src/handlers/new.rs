//! `new NAME`: one session, made or refused.

use std::path::Path;
use std::sync::Arc;

use pythond_protocol::lane::SessionSpec;
use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::events::Event;
use pythond_protocol::verbs::new::{NewOptions, NewReply, NewRequest};
use pythond_protocol::{ErrorCode, ErrorReply, SessionId};

use super::{Context, GRACE, Reply, limits};
use crate::environment::{self, Environment, EnvironmentError};
use crate::error::SpawnError;
use crate::session::{EndReason, SessionHandle};

pub(super) async fn handle(
    context: &Arc<Context>,
    request: NewRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    let tracker = context.hosts.tracker.clone();
    let context = Arc::clone(context);
    // A session that is half made when its client goes away is finished, so
    // that nobody is left without a name.
    let work = tracker.spawn(async move { create(&context, request).await });
    let reply = work
        .await
        .unwrap_or_else(|_| Err(ErrorReply::new(ErrorCode::Internal, "internal error")))?;
    Ok(match format {
        ReplyFormat::Plain => Reply::ok(format!("OK {} pid={}", reply.session, reply.pid)),
        ReplyFormat::Json => Reply::json(&reply),
    })
}

async fn create(context: &Context, request: NewRequest) -> Result<NewReply, ErrorReply> {
    let NewRequest {
        session: name,
        options,
    } = request;
    let environment = environment(context, &options).map_err(SpawnError::from)?;
    let cwd = working_directory(context, &options)?;
    let session_limits = options.limits.over(context.session_limits);
    limits::check(session_limits, &context.groups)?;
    if session_limits.memory_bytes.is_some() {
        let zygote = context.hosts.zygotes.get(&environment).await?;
        limits::check_memory(session_limits, zygote.info.pid)?;
    }
    let reservation = context
        .registry
        .reserve(&name, options.replace || context.new_replaces)?;
    let replaced = reservation
        .previous
        .clone()
        .filter(|previous| !previous.is_dead());
    if let Some(previous) = &replaced {
        // An environment that cannot be used must not cost the old session.
        context.hosts.zygotes.get(&environment).await?;
        let gone = previous
            .end(EndReason::Replaced, GRACE, &context.hurry)
            .await;
        if !gone {
            return Err(ErrorReply::new(
                ErrorCode::SessionUnreachable,
                format!("the process of the session `{name}` to replace does not end"),
            ));
        }
    }
    let (session_id, generation) = match &replaced {
        Some(previous) => {
            let spec = &previous.hosted().spec;
            (spec.session_id.clone(), spec.generation + 1)
        }
        None => (random_id()?, 1),
    };
    let spec = SessionSpec {
        session: name.clone(),
        session_id,
        generation,
        cwd,
        env: environment.variables.clone(),
        directory: context
            .sessions_dir
            .join(name.as_str())
            .display()
            .to_string(),
        python_reason: environment.reason.clone(),
        cold_reason: None,
        must_start_cold: false,
        limits: session_limits,
        kept: context.limits.kept,
        cells: context.limits.cells,
    };
    let handle = context.hosts.create(&environment, spec).await?;
    let reply = reply(&handle, replaced.is_some());
    reservation.fill(handle);
    context.hosts.events.publish(Event::SessionCreated {
        session: reply.session.clone(),
        session_id: reply.session_id.clone(),
        generation: reply.generation,
        pid: reply.pid,
    });
    Ok(reply)
}

fn reply(handle: &SessionHandle, replaced: bool) -> NewReply {
    let hosted = handle.hosted();
    NewReply {
        ok: true,
        session: hosted.spec.session.clone(),
        session_id: hosted.spec.session_id.clone(),
        generation: hosted.spec.generation,
        pid: handle.process().pid(),
        python: hosted.python.clone(),
        start: hosted.start,
        cold_reason: hosted.cold_reason.clone(),
        replaced,
    }
}

/// The environment that the options, and else the daemon, call for.
pub(crate) fn environment(
    context: &Context,
    options: &NewOptions,
) -> Result<Environment, EnvironmentError> {
    let mut variables = context.variables.clone();
    variables.extend(options.env.clone());
    let (python, default_reason) = match &options.python {
        Some(python) => (python.clone(), "asked for"),
        None => (
            environment::default_python(&context.search_path)?,
            "python3 on the daemon's PATH",
        ),
    };
    environment::check_python(&python)?;
    let reason = options
        .python_reason
        .clone()
        .unwrap_or_else(|| default_reason.to_owned());
    Ok(Environment {
        python,
        reason,
        preload: options.preload.clone(),
        variables,
    })
}

fn working_directory(context: &Context, options: &NewOptions) -> Result<String, SpawnError> {
    let cwd = match &options.cwd {
        Some(cwd) => cwd.clone(),
        None => context.cwd.display().to_string(),
    };
    if Path::new(&cwd).is_dir() {
        Ok(cwd)
    } else {
        Err(SpawnError::Directory(cwd))
    }
}

fn random_id() -> Result<SessionId, SpawnError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|_| SpawnError::Random)?;
    Ok(SessionId::from_random(bytes))
}
