//! Addresses of other machines, in one form however they are typed.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Where a daemon listens unless somebody says otherwise.
pub const DEFAULT_PORT: u16 = 7399;

/// A host and a port. Two that mean the same text are equal: letters are small,
/// a last dot is gone, IP addresses have their shortest form. Names are not looked
/// up: a name and its IP address are two addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Host {
    Ip(IpAddr),
    /// An IPv6 address that means something on one network interface only.
    Scoped(Ipv6Addr, String),
    Name(String),
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No host, or characters that no host has.
    #[error("`{}` is no host name or IP address", .0.escape_debug())]
    BadHost(String),
    /// The port is no number from 1 to 65535.
    #[error("`{}` is no port from 1 to 65535", .0.escape_debug())]
    BadPort(String),
    /// It begins as an URL does.
    #[error("`{}` should be HOST:PORT, without `{}://`", .text.escape_debug(), .scheme.escape_debug())]
    Scheme {
        /// All of it.
        text: String,
        /// What stands before `://`.
        scheme: String,
    },
}

impl PeerAddress {
    /// The host: a name, or an IP address without brackets.
    #[must_use]
    pub fn host(&self) -> String {
        match &self.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Scoped(ip, scope) => format!("{ip}%{scope}"),
            Host::Name(name) => name.clone(),
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (self.host(), self.port);
        match self.host {
            Host::Ip(IpAddr::V6(_)) | Host::Scoped(..) => write!(f, "[{host}]:{port}"),
            Host::Ip(IpAddr::V4(_)) | Host::Name(_) => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for PeerAddress {
    type Err = AddressError;

    /// `HOST`, `HOST:PORT`, `[IPV6]`, `[IPV6]:PORT`, or an IPv6 address alone.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some((scheme, _)) = text.split_once("://") {
            let shown = |text: &str| text.chars().take(100).collect();
            return Err(AddressError::Scheme {
                text: shown(text),
                scheme: shown(scheme),
            });
        }
        if let Some(inside) = text.strip_prefix('[') {
            let Some((ip, after)) = inside.split_once(']') else {
                return Err(bad_host(text));
            };
            let host = ipv6(ip).ok_or_else(|| bad_host(ip))?;
            let port = match after {
                "" => DEFAULT_PORT,
                after => port(after.strip_prefix(':').ok_or_else(|| bad_host(text))?)?,
            };
            return Ok(Self { host, port });
        }
        if let Some(host) = ipv6(text) {
            let port = DEFAULT_PORT;
            return Ok(Self { host, port });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, written)) => (host, port(written)?),
            None => (text, DEFAULT_PORT),
        };
        let host = name(host).ok_or_else(|| bad_host(host))?;
        Ok(Self { host, port })
    }
}

fn bad_host(text: &str) -> AddressError {
    AddressError::BadHost(text.chars().take(300).collect())
}

fn port(text: &str) -> Result<u16, AddressError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(AddressError::BadPort(text.chars().take(100).collect())),
    }
}

fn ipv6(text: &str) -> Option<Host> {
    let Some((ip, scope)) = text.split_once('%') else {
        let ip: Ipv6Addr = text.parse().ok()?;
        // An IPv4 address in disguise is that address.
        return Some(Host::Ip(IpAddr::V6(ip).to_canonical()));
    };
    let known = !scope.is_empty()
        && scope.len() < 16
        && scope
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let ip = ip.parse().ok()?;
    known.then(|| Host::Scoped(ip, scope.to_owned()))
}

fn name(text: &str) -> Option<Host> {
    if let Ok(ip) = text.parse() {
        return Some(Host::Ip(ip));
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    // What looks like a number is a wrong IP address, or one in a form that some
    // systems read and others do not.
    let last = text.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.to_ascii_lowercase().starts_with("0x");
    let good = text.len() <= 253 && text.split('.').all(label) && !number;
    good.then(|| Host::Name(text.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_address_has_one_form() {
        for (typed, form) in [
            ("host", "host:7399"),
            ("HOST.Example.", "host.example:7399"),
            ("host:1", "host:1"),
            ("host:00080", "host:80"),
            ("10.0.0.5", "10.0.0.5:7399"),
            ("10.0.0.5:7984", "10.0.0.5:7984"),
            ("::1", "[::1]:7399"),
            ("[::1]", "[::1]:7399"),
            ("[0:0:0:0:0:0:0:1]:9", "[::1]:9"),
            ("[2001:DB8::A]:9", "[2001:db8::a]:9"),
            ("[::ffff:10.0.0.5]:9", "10.0.0.5:9"),
            ("[fe80::1%eth0]:9", "[fe80::1%eth0]:9"),
            ("fe80::1%eth0", "[fe80::1%eth0]:7399"),
            ("my_host-1", "my_host-1:7399"),
        ] {
            let address: PeerAddress = typed.parse().unwrap();
            assert_eq!(address.to_string(), form, "{typed}");
            assert_eq!(form.parse(), Ok(address), "{typed}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            ":",
            ":1",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "host:1:2",
            "a b",
            "-a",
            "a..b",
            "[::1",
            "[::1]x",
            "[::1]:",
            "[host]:1",
            "1.2.3",
            "0x7f.1",
            "300.1.1.1",
            "é",
            "host\n",
            "fe80::1%",
            "fe80::1%a b",
            "*",
            "127.1",
            "a/b",
            "wss://host:1",
        ] {
            assert!(text.parse::<PeerAddress>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_is_the_same_address(text in "[\\[\\]:.%a-fA-F0-9-]{0,24}") {
            if let Ok(address) = text.parse::<PeerAddress>() {
                assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
