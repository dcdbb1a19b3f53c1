//! `pysh new NAME`.

use pythond_protocol::limits::SessionLimits;
use pythond_protocol::verbs::new::{Implied, NewOptions};
use pythond_protocol::{ExitCode, SessionName};

use super::dispatch::{address, connect, is_remote};
use crate::args::NewArgs;
use crate::environment::{
    EnvironmentError, Resolution, Surroundings, Wish, path_elsewhere, resolve, resolve_elsewhere,
    working_directory,
};
use crate::failure::Outcome;
use crate::render::Render;

/// Where a session begins.
struct Place {
    found: Resolution,
    /// None leaves the choice to the daemon.
    cwd: Option<String>,
}

impl Place {
    fn here(wish: Wish<'_>, cwd: Option<&str>) -> Result<Self, EnvironmentError> {
        let around = Surroundings::of_process()?;
        Ok(Self {
            found: resolve(wish, &around)?,
            cwd: Some(working_directory(cwd, &around)?),
        })
    }

    /// On another machine: our directory and our environment are not there.
    fn elsewhere(
        wish: Wish<'_>,
        cwd: Option<&str>,
        remote: Option<&SessionName>,
    ) -> Result<Self, EnvironmentError> {
        let remote = remote.map(SessionName::as_str);
        Ok(Self {
            found: resolve_elsewhere(wish, remote)?,
            cwd: cwd.map(|it| path_elsewhere(it, remote)).transpose()?,
        })
    }
}

pub(super) fn new(args: NewArgs, render: &Render) -> Outcome {
    let wish = match (&args.python, &args.venv) {
        (Some(python), _) => Wish::Python(python),
        (None, Some(venv)) => Wish::Venv(venv),
        (None, None) => Wish::Default,
    };
    let elsewhere = !address()?.is_here() || args.name.remote.is_some();
    let place = match elsewhere {
        true => Place::elsewhere(wish, args.cwd.as_deref(), args.name.remote.as_ref())?,
        false => match Place::here(wish, args.cwd.as_deref()) {
            // What was typed is to be found there.
            Err(_) if matches!(is_remote(&args.name.session, render), Ok(true)) => {
                Place::elsewhere(wish, args.cwd.as_deref(), Some(&args.name.session))?
            }
            found => found?,
        },
    };
    let found = place.found;
    for venv in &found.foreign {
        render.note(&format!(
            "`{}` is not used: it belongs to another user",
            venv.display()
        ));
    }
    let (python, python_reason) = found.interpreter.map(|it| (it.python, it.reason)).unzip();
    // Of no use to another machine's daemon, should the name be one's.
    let implied = [
        (wish == Wish::Default, Implied::Python),
        (args.cwd.is_none(), Implied::Cwd),
    ];
    let implied = implied.into_iter().filter(|(it, _)| *it && !elsewhere);
    let implied = implied.map(|(_, field)| field).collect();
    let options = NewOptions {
        python,
        python_reason,
        cwd: place.cwd,
        env: args.env.into_iter().collect(),
        preload: args.preload,
        limits: SessionLimits {
            memory_bytes: args.limits.memory,
            procs: args.limits.procs,
            nofile: args.limits.nofile,
            cpu_s: args.limits.cpu,
            cpu_weight: args.limits.cpu_weight,
        },
        implied,
        replace: args.replace,
    };
    let reply = connect(render)?.create(&args.name, &options)?;
    if render.json {
        render.line(reply.json())?;
        return Ok(ExitCode::Success);
    }
    let session = &reply.value;
    let python = &session.python;
    let which = match python.executable.as_str() {
        // Its daemon does not tell more.
        "" => python.reason.clone(),
        executable => format!("{}, {executable}: {}", python.version, python.reason),
    };
    let (name, pid) = (&session.session, session.pid);
    render.line(&format!("OK {name} pid={pid} (Python {which})"))?;
    if let Some(reason) = &session.cold_reason {
        render.note(&format!("started cold: {reason}"));
    }
    Ok(ExitCode::Success)
}
