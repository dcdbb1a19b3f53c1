//! `pysh new NAME`.

use pythond_protocol::ExitCode;
use pythond_protocol::limits::SessionLimits;
use pythond_protocol::verbs::new::NewOptions;

use super::dispatch::connect;
use crate::args::NewArgs;
use crate::environment::{Surroundings, Wish, resolve, working_directory};
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn new(args: NewArgs, render: &Render) -> Outcome {
    let around = Surroundings::of_process()?;
    let wish = match (&args.python, &args.venv) {
        (Some(python), _) => Wish::Python(python),
        (None, Some(venv)) => Wish::Venv(venv),
        (None, None) => Wish::Default,
    };
    let found = resolve(wish, &around)?;
    for venv in &found.foreign {
        render.note(&format!(
            "`{}` is not used: it belongs to another user",
            venv.display()
        ));
    }
    let (python, python_reason) = found.interpreter.map(|it| (it.python, it.reason)).unzip();
    let options = NewOptions {
        python,
        python_reason,
        cwd: Some(working_directory(args.cwd.as_deref(), &around)?),
        env: args.env.into_iter().collect(),
        preload: args.preload,
        limits: SessionLimits {
            memory_bytes: args.limits.memory,
            procs: args.limits.procs,
            nofile: args.limits.nofile,
            cpu_s: args.limits.cpu,
            cpu_weight: args.limits.cpu_weight,
        },
        replace: args.replace,
    };
    let reply = connect()?.create(&args.name, &options)?;
    if render.json {
        render.line(reply.json())?;
        return Ok(ExitCode::Success);
    }
    let session = &reply.value;
    let python = &session.python;
    render.line(&format!(
        "OK {} pid={} (Python {}, {}: {})",
        session.session, session.pid, python.version, python.executable, python.reason
    ))?;
    if let Some(reason) = &session.cold_reason {
        render.note(&format!("started cold: {reason}"));
    }
    Ok(ExitCode::Success)
}
