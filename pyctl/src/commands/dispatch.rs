//! From the parsed command line to the command's own file.

use clap::CommandFactory as _;
use pythond_protocol::ExitCode;
use pythond_transport::{Address, AddressVariables, Client, ClientError};

use super::{
    cert, completions, connect, disconnect, man, pair, pin, restart, start, status, stop, token,
    trust, unpin, untrust, version,
};
use crate::args::{Cli, Command};
use crate::failure::Outcome;
use crate::render::Render;

/// Carries out a command; without one, shows the help.
pub(crate) fn dispatch(command: Option<Command>, render: &Render) -> Outcome {
    let Some(command) = command else {
        let help = Cli::command().render_help().to_string();
        render.raw(help.as_bytes())?;
        return Ok(ExitCode::Success);
    };
    match command {
        Command::Start(args) => start::start(&args, render),
        Command::Stop(args) => stop::stop(&args, render),
        Command::Restart => restart::restart(render),
        Command::Connect(args) => connect::connect(args, render),
        Command::Disconnect(args) => disconnect::disconnect(&args, render),
        Command::Status => status::status(render),
        Command::Cert(args) => cert::cert(&args, render),
        Command::Pair(args) => pair::pair(&args, render),
        Command::Pin(args) => pin::pin(&args, render),
        Command::Unpin(args) => unpin::unpin(&args, render),
        Command::Trust(args) => trust::trust(&args, render),
        Command::Untrust(args) => untrust::untrust(&args, render),
        Command::Token(args) => token::token(&args, render),
        Command::Version => version::version(render),
        Command::Completions(args) => completions::completions(&args, render),
        Command::Man(args) => man::man(&args, render),
    }
}

/// The address of the daemon that all commands are about.
pub(super) fn address() -> Result<Address, ClientError> {
    Address::from_variables(&AddressVariables::from_environment())
}

/// A connection to this daemon; what people should know of it is told.
pub(super) fn connect(address: &Address, render: &Render) -> Result<Client, ClientError> {
    let mut client = Client::connect(address)?;
    if let Some(notice) = client.take_notice() {
        render.note(&notice);
    }
    Ok(client)
}
