//! Arguments as typed, checked once into a [`Config`]. The environment is read
//! here and nowhere else.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use pythond_private_fs::paths::{self, PathVariables, SocketPlace};
use pythond_protocol::limits::SessionLimits;

use crate::daemon_limits::DaemonLimits;
use crate::network::listen::ListenAddress;
use crate::settings::{self, Settings, SettingsError};

/// Live Python sessions that outlast their clients.
#[derive(Debug, Parser)]
#[command(name = "pythond", version, about)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What `pythond` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve sessions, in the foreground.
    Daemon(DaemonArgs),
    /// Join standard input and output with the daemon, which is started if there is
    /// none: what `ssh://` addresses run on the other machine.
    Bridge(BridgeArgs),
    /// Print the version.
    Version,
    /// Print a completion script.
    #[command(hide = true)]
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Print the man page.
    #[command(hide = true)]
    Man,
}

/// Options of `pythond daemon`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DaemonArgs {
    /// Detach, and return when the socket answers.
    #[arg(short, long)]
    pub detach: bool,
    /// We are the detached one.
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub detached: bool,
    /// Go on with the socket in our standard input.
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub inherit: bool,
    /// A service manager has made that socket.
    #[arg(long, hide = true, requires = "inherit")]
    pub activated: bool,
    /// Only say whether we could start.
    #[arg(long, hide = true)]
    pub check: bool,
    /// Who else is let in.
    #[command(flatten)]
    pub listen: ListenArgs,
}

/// Who else is let in than processes on this machine.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ListenArgs {
    /// Listen for other machines too; may be given several times. The port is 7399 if it is not
    /// said. What is not loopback is always encrypted (TLS).
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Vec<ListenAddress>,
    /// Encrypt connections on loopback as well.
    #[arg(long, requires = "listen")]
    pub tls: bool,
    /// Print the token and the certificate's fingerprint.
    #[arg(long, requires = "listen")]
    pub show_token: bool,
}

/// Options of `pythond bridge`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct BridgeArgs {
    /// By standard input and output.
    #[arg(long, required = true)]
    pub stdio: bool,
    /// Only if there is a daemon.
    #[arg(long)]
    pub no_start: bool,
}

impl ListenArgs {
    /// The same as arguments again.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<String> {
        let addresses = self
            .listen
            .iter()
            .map(|it| format!("--listen={}", it.as_typed()));
        let tls = self.tls.then(|| "--tls".to_owned());
        addresses.chain(tls).collect()
    }
}

/// A variable or setting that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is no number that fits.
    #[error("{name} is `{value}`, and should be from {least} to {most}")]
    Number {
        /// Which variable or setting.
        name: String,
        /// What it is.
        value: String,
        /// Least value.
        least: u64,
        /// Greatest value.
        most: u64,
    },
    /// The configuration file cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// There is no home directory.
    #[error("HOME is not set to an absolute path; sessions keep their files below it")]
    NoHome,
    /// The directory we are in is gone.
    #[error("the working directory cannot be used")]
    NoDirectory(#[source] std::io::Error),
    /// Our own path is unknown.
    #[error("cannot find our own executable")]
    NoExecutable(#[source] std::io::Error),
}

/// Everything the daemon was told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub socket: SocketPlace,
    /// Where to listen for other machines, and how.
    pub listen: ListenArgs,
    /// The user's home directory, which has the keys.
    pub home: PathBuf,
    /// Where our clients find a daemon that is there.
    pub client_socket: PathBuf,
    /// Directory of host sockets, the lock and `access.log`.
    pub runtime_dir: PathBuf,
    /// Where sessions keep their files.
    pub sessions_dir: PathBuf,
    /// Limits of the daemon.
    pub limits: DaemonLimits,
    /// Variables of every session.
    pub variables: BTreeMap<String, String>,
    /// `PATH`.
    pub search_path: OsString,
    /// Where sessions begin unless told otherwise.
    pub cwd: PathBuf,
    /// Our own executable.
    pub executable: PathBuf,
    /// `new` on a live name replaces it.
    pub new_replaces: bool,
    /// What a session may use that does not say so itself.
    pub session_limits: SessionLimits,
    /// We are the detached one.
    pub detached: bool,
    /// Our standard input is the socket.
    pub inherit: bool,
    /// A service manager has made that socket.
    pub activated: bool,
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(args: &DaemonArgs) -> Result<Self, ConfigError> {
        let cwd = std::env::current_dir().map_err(ConfigError::NoDirectory)?;
        let home = std::env::var_os("HOME")
            .map(PathBuf::from)
            .filter(|home| home.is_absolute());
        let variables = PathVariables {
            pythond_sock: std::env::var_os("PYTHOND_SOCK")
                .filter(|path| !path.is_empty())
                .map(|path| cwd.join(path).into_os_string()),
            xdg_runtime_dir: std::env::var_os("XDG_RUNTIME_DIR"),
            tmpdir: std::env::var_os("TMPDIR"),
        };
        let socket = paths::default_socket(&variables);
        let client_socket = paths::client_socket(&variables).path;
        let home = home.ok_or(ConfigError::NoHome)?;
        let config_home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
        let settings = Settings::read(&settings::place(config_home, &home))?;
        let variable =
            |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Ok(Self {
            runtime_dir: paths::runtime_dir(&socket),
            client_socket,
            sessions_dir: paths::sessions_dir(&home),
            limits: DaemonLimits::read(&settings, variable)?,
            variables: session_variables(std::env::vars_os()),
            search_path: std::env::var_os("PATH")
                .unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()),
            executable: own_executable()?,
            new_replaces: settings.compat.new_replaces,
            session_limits: settings.session.limits(),
            detached: args.detached,
            inherit: args.inherit,
            activated: args.activated,
            listen: args.listen.clone(),
            home,
            socket,
            cwd,
        })
    }

    /// The directory that holds the socket.
    pub fn socket_dir(&self) -> &Path {
        self.socket.path.parent().unwrap_or(Path::new("/"))
    }
}

/// `/proc/self/exe` follows links, so that `pythond-host` is found beside the
/// real file from wherever we are called.
fn own_executable() -> Result<PathBuf, ConfigError> {
    std::env::current_exe().map_err(ConfigError::NoExecutable)
}

/// How the names of variables begin that are for the daemon alone.
const OURS: [&str; 5] = [
    "PYTHOND_",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
];

/// What sessions inherit: everything but our own variables, which may hold a
/// token, and those of a service manager, which are meant for us. What is no UTF-8 cannot travel in our messages and is left out.
fn session_variables(all: impl Iterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
    all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !OURS.iter().any(|ours| name.starts_with(ours)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn sessions_do_not_inherit_our_own_variables() {
        let all = [
            ("PATH", "/bin"),
            ("PYTHOND_TOKEN", "secret"),
            ("LISTEN_FDS", "1"),
            ("NOTIFY_SOCKET", "/run/notify"),
            ("PYTHONPATH", "/p"),
        ];
        let all = all.map(|(name, value)| (name.into(), value.into()));
        let names: Vec<_> = session_variables(all.into_iter()).into_keys().collect();
        assert_eq!(names, ["PATH", "PYTHONPATH"]);
    }
}
