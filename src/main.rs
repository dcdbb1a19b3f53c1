//! Arguments → configuration → runtime → serve → exit code.

use std::io::Write as _;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use pythond::bridge::{self, BridgeError};
use pythond::config::{Args, BridgeArgs, Command, Config, DaemonArgs};
use pythond::daemon;
use pythond::detach::{self, DetachError};
use pythond::network;
use pythond_protocol::ExitCode as Code;
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err((code, error)) => {
            // Standard error may be closed; the exit code says it as well.
            let _ = writeln!(std::io::stderr(), "error: {}", in_one(&error));
            ExitCode::from(code)
        }
    }
}

type Failure = (u8, anyhow::Error);

fn run(args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        None => print(|out| out.write_all(Args::command().render_help().to_string().as_bytes())),
        Some(Command::Version) => {
            print(|out| writeln!(out, "pythond {}", env!("CARGO_PKG_VERSION")))
        }
        Some(Command::Completions { shell }) => print(|out| {
            clap_complete::generate(shell, &mut Args::command(), "pythond", out);
            Ok(())
        }),
        Some(Command::Man) => print(|out| clap_mangen::Man::new(Args::command()).render(out)),
        Some(Command::Daemon(args)) => serve(&args),
        Some(Command::Bridge(args)) => bridge(args),
    }
}

/// A reader that has gone away is no error.
fn print(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    let written = write(&mut text).and_then(|()| std::io::stdout().write_all(&text));
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err((Code::Refused as u8, error.into()))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn bridge(args: BridgeArgs) -> Result<ExitCode, Failure> {
    let config = Config::read(&DaemonArgs::default());
    let config = config.map_err(|error| (Code::Usage as u8, error.into()))?;
    match bridge::run(&config, !args.no_start) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Whoever asks for that knows what the code means.
        Err(BridgeError::NoDaemon(_)) => Ok(ExitCode::from(Code::NoDaemon as u8)),
        Err(error) => Err((Code::Refused as u8, error.into())),
    }
}

fn serve(args: &DaemonArgs) -> Result<ExitCode, Failure> {
    let config = Config::read(args).map_err(|error| (Code::Usage as u8, error.into()))?;
    if args.check {
        return print(|out| writeln!(out, "pythond {}", env!("CARGO_PKG_VERSION")));
    }
    if args.detach {
        return match detach::start(&config) {
            Ok(pid) => {
                print(|out| {
                    writeln!(
                        out,
                        "pythond pid={pid} ws://{}",
                        config.socket.path.display()
                    )
                })?;
                if config.listen.show_token {
                    let printed = network::print_secrets(&config.home);
                    printed.map_err(|error| (Code::Refused as u8, error.into()))?;
                }
                Ok(ExitCode::SUCCESS)
            }
            Err(DetachError::Refused { words, code }) => Err((code, anyhow::anyhow!(words))),
            Err(error) => Err((Code::Refused as u8, error.into())),
        };
    }
    if args.detached {
        // The terminal of whoever started us is not ours any more. It fails
        // only for a group leader, which has none to lose then.
        let _ = rustix::process::setsid();
    }
    let runtime = runtime().map_err(|error| (Code::Refused as u8, error))?;
    match runtime.block_on(daemon::run(config)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err((error.exit_code() as u8, error.into())),
    }
}

/// What everything runs on.
fn runtime() -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let build = || builder.enable_all().build();
    // tokio panics where it gets no pair of sockets for signals; that is said in
    // our words, not in those of the hook.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let built = panic::catch_unwind(AssertUnwindSafe(build));
    panic::set_hook(hook);
    let built = built.map_err(|panicked| {
        let words = panicked.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panicked.downcast_ref::<&str>().copied());
        anyhow::anyhow!(words.unwrap_or("no reason is known").to_owned())
    });
    built
        .and_then(|built| Ok(built?))
        .context("cannot set up signals and events")
}

/// An error and its causes in one line.
fn in_one(error: &anyhow::Error) -> String {
    format!("{error:#}")
}
