//! From the parsed command line to the command's own file.

use clap::CommandFactory as _;
use pythond_protocol::{ExitCode, SessionName};
use pythond_transport::{Address, AddressVariables, Client, ClientError};

use super::{
    attach, cells, complete, completions, events, fire, fork, hold, interrupt, kill, list, man,
    new, out, poll, run, stack, status, vars, version, wait,
};
use crate::args::{Cli, Command};
use crate::failure::{Failure, Outcome};
use crate::lasting::{Lasting, Nothing};
use crate::render::Render;

/// Carries out a command; without one, shows the help.
pub(crate) fn dispatch(command: Option<Command>, render: &Render) -> Outcome {
    let Some(command) = command else {
        let help = Cli::command().render_help().to_string();
        render.raw(help.as_bytes())?;
        return Ok(ExitCode::Success);
    };
    match command {
        Command::New(args) => lasting(render)?.once(|| new::new(args.clone(), render)),
        Command::Run(args) => run::run(args, render),
        Command::Fire(args) => fire::fire(args, render),
        Command::Fork(args) => fork::fork(args, render),
        Command::Poll(args) => lasting(render)?.repeat(|| poll::poll(&args, render)),
        Command::Wait(args) => wait::wait(&args, render),
        Command::Out(args) => out::out(args, render),
        Command::Attach(args) => attach::attach(&args, render),
        Command::Hold(args) => lasting(render)?.once(|| hold::hold(args.clone(), true, render)),
        Command::Release(args) => lasting(render)?.once(|| hold::hold(args.clone(), false, render)),
        Command::Cells(args) => lasting(render)?.repeat(|| cells::cells(&args, render)),
        Command::Stack(args) => lasting(render)?.repeat(|| stack::stack(&args, render)),
        Command::Events(args) => events::events(&args, render),
        Command::Ls(args) => lasting(render)?.repeat(|| list::list(&args, render)),
        Command::Kill(args) => lasting(render)?.once(|| kill::kill(&args, render)),
        Command::Status(args) => lasting(render)?.repeat(|| status::status(&args, render)),
        Command::Vars(args) => lasting(render)?.repeat(|| vars::vars(&args, render)),
        Command::Complete(args) => lasting(render)?.repeat(|| complete::complete(&args, render)),
        Command::Int(args) => lasting(render)?.once(|| interrupt::interrupt(&args, render)),
        Command::Version => version::version(render),
        Command::Completions(args) => completions::completions(&args, render),
        Command::Man(args) => man::man(&args, render),
    }
}

/// Whether the daemon has another machine's daemon under this name.
pub(crate) fn is_remote(name: &SessionName, render: &Render) -> Result<bool, Failure> {
    let list = lasting(render)?.attempt(&mut Nothing, |client, _| Ok(client.list()?))?;
    Ok(list.value.remotes.iter().any(|it| it.name == *name))
}

/// The address of the daemon that all commands talk to.
pub(super) fn address() -> Result<Address, ClientError> {
    Address::from_variables(&AddressVariables::from_environment())
}

/// The way to the daemon, for what is done again if the connection breaks.
pub(super) fn lasting(render: &Render) -> Result<Lasting<'_>, Failure> {
    Ok(Lasting::new(address()?, render)?)
}

/// A connection to the daemon.
pub(super) fn connect(render: &Render) -> Result<Client, ClientError> {
    connect_to(&address()?, render)
}

/// A connection to this daemon; what people should know of it is told.
pub(super) fn connect_to(address: &Address, render: &Render) -> Result<Client, ClientError> {
    Client::connect(address).map(|client| render.connected(client))
}
