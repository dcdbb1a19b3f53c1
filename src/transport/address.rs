//! Where the daemon is, from the values of environment variables.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use pythond_identity::{PeerAddress, Token, TokenError};
use pythond_private_fs::paths::{PathVariables, client_socket};
use zeroize::Zeroizing;

use crate::ClientError;
use crate::ssh::{NotSshAddress, SCHEME, SshAddress};

/// A daemon's address.
#[derive(Clone, Debug)]
pub enum Address {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// A port, on another machine for the most part.
    Tcp(TcpAddress),
    /// A daemon of a machine that ssh leads to.
    Ssh(SshAddress),
}

/// A daemon's port, and what it asks of those who come.
#[derive(Clone, Debug)]
pub struct TcpAddress {
    /// Host and port.
    pub peer: PeerAddress,
    /// Whether TLS is spoken. Without, it must be this machine's.
    pub tls: bool,
    /// What the daemon wants to know first; none if nobody has said it.
    pub(crate) token: Option<Token>,
    /// Whose pins and certificate count.
    pub(crate) home: Option<PathBuf>,
}

/// Values of the variables that say where the daemon is.
#[derive(Clone, Debug, Default)]
pub struct AddressVariables {
    /// `PYTHOND_HOST`: a daemon that is reached by TCP.
    pub pythond_host: Option<OsString>,
    /// `PYTHOND_PORT`: its port, if the host does not say it.
    pub pythond_port: Option<OsString>,
    /// `PYTHOND_TLS`: whether it speaks TLS.
    pub pythond_tls: Option<OsString>,
    /// `PYTHOND_TOKEN`: its token.
    pub pythond_token: Option<Secret>,
    /// `HOME`: where pins and keys are.
    pub home: Option<OsString>,
    /// Those that lead to the local socket.
    pub paths: PathVariables,
}

/// A value that is never shown.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl From<OsString> for Secret {
    fn from(value: OsString) -> Self {
        Self(Zeroizing::new(value.into_vec()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

impl AddressVariables {
    /// The values that this process has.
    #[must_use]
    pub fn from_environment() -> Self {
        let read = |name| std::env::var_os(name);
        let pythond_host = read("PYTHOND_HOST").filter(|host| !host.is_empty());
        let paths = PathVariables {
            pythond_sock: read("PYTHOND_SOCK"),
            xdg_runtime_dir: read("XDG_RUNTIME_DIR"),
            tmpdir: read("TMPDIR"),
        };
        if pythond_host.is_none() {
            return Self {
                paths,
                ..Self::default()
            };
        }
        Self {
            pythond_host,
            pythond_port: read("PYTHOND_PORT"),
            pythond_tls: read("PYTHOND_TLS"),
            pythond_token: read("PYTHOND_TOKEN").map(Secret::from),
            home: read("HOME"),
            paths,
        }
    }
}

impl Address {
    /// The daemon that a client talks to: that of `PYTHOND_HOST` if it is set, as
    /// a request meant for another machine must not reach the local daemon.
    ///
    /// # Errors
    /// [`ClientError::BadVariable`] names the variable that is wrong;
    /// [`ClientError::TlsNeeded`] if a token would be sent in clear over a network.
    pub fn from_variables(variables: &AddressVariables) -> Result<Self, ClientError> {
        match &variables.pythond_host {
            Some(host) if host.to_string_lossy().starts_with(SCHEME) => {
                let address = host.to_string_lossy().parse();
                let wrong = |error: NotSshAddress| bad("PYTHOND_HOST", error.to_string());
                address.map(Self::Ssh).map_err(wrong)
            }
            Some(host) if !host.is_empty() => TcpAddress::new(host, variables).map(Self::Tcp),
            _ => Ok(Self::Unix(client_socket(&variables.paths).path)),
        }
    }
}

impl Address {
    /// A daemon of this machine.
    #[must_use]
    pub fn is_here(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// The same, and no daemon is started there if there is none.
    #[must_use]
    pub fn without_start(self) -> Self {
        match self {
            Self::Ssh(address) => Self::Ssh(SshAddress {
                may_start: false,
                ..address
            }),
            other => other,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(formatter),
            Self::Ssh(address) => address.fmt(formatter),
        }
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "tcp" };
        write!(formatter, "{scheme}:{}", self.peer)
    }
}

impl TcpAddress {
    fn new(host: &OsString, variables: &AddressVariables) -> Result<Self, ClientError> {
        let peer = peer(host, variables.pythond_port.as_ref())?;
        let tls = is_on("PYTHOND_TLS", variables.pythond_tls.as_ref())?;
        if !tls && !may_be_loopback(&peer) {
            return Err(ClientError::TlsNeeded { address: peer });
        }
        let token = variables.pythond_token.as_ref();
        Ok(Self {
            peer,
            tls,
            token: token.map(token_of).transpose()?.flatten(),
            home: variables.home.clone().map(PathBuf::from),
        })
    }
}

fn bad(name: &'static str, reason: impl Into<String>) -> ClientError {
    ClientError::BadVariable {
        name,
        reason: reason.into(),
    }
}

/// A value as text; none if it is empty.
fn text<'a>(
    name: &'static str,
    value: Option<&'a OsString>,
) -> Result<Option<&'a str>, ClientError> {
    let Some(value) = value else {
        return Ok(None);
    };
    let text = value.to_str().ok_or_else(|| bad(name, "it is no UTF-8"))?;
    Ok(Some(text.trim()).filter(|text| !text.is_empty()))
}

fn peer(host: &OsString, port: Option<&OsString>) -> Result<PeerAddress, ClientError> {
    const HOST: &str = "PYTHOND_HOST";
    const PORT: &str = "PYTHOND_PORT";
    let host = text(HOST, Some(host))?.ok_or_else(|| bad(HOST, "it is blank"))?;
    if host.contains("://") {
        return Err(bad(HOST, "it should be HOST, HOST:PORT or ssh://USER@HOST"));
    }
    let parsed: PeerAddress = host
        .parse()
        .map_err(|error| bad(HOST, format!("{error}")))?;
    // A port that stands in the host counts first.
    let plain = parsed.host();
    let is_ipv6 = plain.contains(':');
    let says_port = match host.starts_with('[') {
        true => !host.ends_with(']'),
        false => !is_ipv6 && host.contains(':'),
    };
    match text(PORT, port)? {
        Some(port) if !says_port => {
            let bracketed = if is_ipv6 { format!("[{plain}]") } else { plain };
            format!("{bracketed}:{port}")
                .parse()
                .map_err(|_| bad(PORT, format!("`{port}` is no port from 1 to 65535")))
        }
        Some(_) | None => Ok(parsed),
    }
}

fn is_on(name: &'static str, value: Option<&OsString>) -> Result<bool, ClientError> {
    let Some(text) = text(name, value)? else {
        return Ok(false);
    };
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" => Ok(true),
        "0" | "false" | "no" => Ok(false),
        _ => Err(bad(
            name,
            format!("`{text}` should be `1`, `true` or `yes`, else `0`, `false` or `no`"),
        )),
    }
}

/// Never shows what it was given.
fn token_of(value: &Secret) -> Result<Option<Token>, ClientError> {
    const STRANGE: &str = "it is too long for a token, or has characters that no token has";
    let refused = |reason| bad("PYTHOND_TOKEN", reason);
    let text = std::str::from_utf8(&value.0).map_err(|_| refused(STRANGE))?;
    match text.trim() {
        "" => Ok(None),
        text => Token::new(text).map(Some).map_err(|error| {
            refused(match error {
                TokenError::Short => "it is shorter than every token",
                _ => STRANGE,
            })
        }),
    }
}

/// Whether it can be this machine's own. Names are looked up when it is connected
/// to, and only an address of this machine is taken then.
fn may_be_loopback(peer: &PeerAddress) -> bool {
    let host = peer.host();
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => host == "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn from(values: &[(&str, &str)]) -> Result<Address, ClientError> {
        let value = |name| {
            let found = values.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Address::from_variables(&AddressVariables {
            pythond_host: value("HOST"),
            pythond_port: value("PORT"),
            pythond_tls: value("TLS"),
            pythond_token: value("TOKEN").map(Secret::from),
            home: None,
            paths: PathVariables {
                pythond_sock: Some("/s".into()),
                ..Default::default()
            },
        })
    }

    #[test]
    fn without_a_host_it_is_the_local_socket() {
        for values in [&[][..], &[("HOST", "")], &[("TLS", "maybe"), ("PORT", "x")]] {
            assert_eq!(from(values).unwrap().to_string(), "unix:/s", "{values:?}");
        }
    }

    #[test]
    fn host_and_port_are_read_in_all_their_forms() {
        for (host, port, shown) in [
            ("far.example", "", "tls:far.example:7399"),
            ("FAR.example:1", "", "tls:far.example:1"),
            ("far.example", "7984", "tls:far.example:7984"),
            ("far.example:1", "7984", "tls:far.example:1"),
            ("::1", "5", "tls:[::1]:5"),
            ("[::1]", "5", "tls:[::1]:5"),
            ("[::1]:6", "5", "tls:[::1]:6"),
            ("fe80::1%eth0", " 5 ", "tls:[fe80::1%eth0]:5"),
            ("[::ffff:10.0.0.5]", "5", "tls:10.0.0.5:5"),
            ("10.0.0.5", "", "tls:10.0.0.5:7399"),
        ] {
            let found = from(&[("HOST", host), ("PORT", port), ("TLS", "1")]).unwrap();
            assert_eq!(found.to_string(), shown, "{host} {port}");
        }
    }

    #[test]
    fn a_wrong_value_names_its_variable() {
        let tls = ("TLS", "1");
        for (values, name) in [
            (&[("HOST", "a b"), tls][..], "PYTHOND_HOST"),
            (&[("HOST", " "), tls], "PYTHOND_HOST"),
            (&[("HOST", "https://far.example"), tls], "PYTHOND_HOST"),
            (&[("HOST", "far:0"), tls], "PYTHOND_HOST"),
            (&[("HOST", "far"), ("PORT", "0"), tls], "PYTHOND_PORT"),
            (&[("HOST", "far"), ("PORT", "1:2"), tls], "PYTHOND_PORT"),
            (&[("HOST", "far"), ("TLS", "maybe")], "PYTHOND_TLS"),
            (
                &[("HOST", "far"), ("TOKEN", "secret"), tls],
                "PYTHOND_TOKEN",
            ),
            (
                &[
                    ("HOST", "far"),
                    ("TOKEN", "secret 6789abcdef0123456789abcdef"),
                    tls,
                ],
                "PYTHOND_TOKEN",
            ),
        ] {
            let error = from(values).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(name) && !text.contains("secret"), "{text}");
            assert_eq!(crate::Report::from(error).exit as i32, 2);
        }
    }

    #[test]
    fn what_is_not_this_machine_needs_tls() {
        for tls in ["1", "true", "YES"] {
            let found = from(&[("HOST", "far"), ("TLS", tls)]).unwrap();
            assert_eq!(found.to_string(), "tls:far:7399");
        }
        for tls in ["", "0", "False", "no"] {
            for host in [
                "far",
                "10.0.0.5",
                "0.0.0.0",
                "[fe80::1%lo]",
                "localhost.example",
            ] {
                let error = from(&[("HOST", host), ("TLS", tls)]).unwrap_err();
                assert!(matches!(error, ClientError::TlsNeeded { .. }), "{host}");
            }
            for host in ["127.0.0.1", "127.0.0.2", "::1", "localhost"] {
                let found = from(&[("HOST", host), ("TLS", tls)]).unwrap();
                assert!(found.to_string().starts_with("tcp:"), "{host}");
            }
        }
    }

    #[test]
    fn a_token_is_kept_and_never_shown() {
        let token = format!("{TOKEN}\n");
        let found = from(&[("HOST", "::1"), ("TOKEN", &token)]).unwrap();
        let shown = format!("{found:?} {found}");
        assert!(!shown.contains(TOKEN), "{shown}");
        let Address::Tcp(address) = found else {
            panic!("{shown}")
        };
        assert_eq!(address.token.unwrap().reveal(), TOKEN);
    }
}
