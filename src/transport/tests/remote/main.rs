//! Clients that go to a port: what they say, whom they believe, what fails.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod far;
mod handshake;
mod traffic;
mod trust;

use std::ffi::OsString;
use std::time::Duration;

use far::{Machine, TOKEN};
use pythond_transport::{Address, AddressVariables, Client, ClientError, RemoteError, Report};

/// Longer than anything here takes, shorter than a patient person's wait.
const DEADLINE: Duration = Duration::from_secs(20);

const EMPTY_LIST: &str = r#"{"ok":true,"sessions":[]}"#;

/// The way from a machine to a port of this one.
fn address(from: &Machine, host: &str, tls: bool, token: Option<&str>) -> Address {
    Address::from_variables(&AddressVariables {
        pythond_host: Some(host.into()),
        pythond_tls: Some(if tls { "1" } else { "0" }.into()),
        pythond_token: token.map(|token| OsString::from(token).into()),
        home: Some(from.home.path().into()),
        ..AddressVariables::default()
    })
    .unwrap()
}

/// The same with the right token.
fn way(from: &Machine, port: u16, tls: bool) -> Address {
    address(from, &local(port), tls, Some(TOKEN))
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn not_connected(address: &Address) -> RemoteError {
    not_connected_within(address, DEADLINE)
}

fn not_connected_within(address: &Address, limit: Duration) -> RemoteError {
    match Client::connect_within(address, limit) {
        Err(ClientError::NotConnected(error)) => {
            let report = Report::from(ClientError::NotConnected(error));
            assert!(
                !report.message.contains(TOKEN) && report.hint.is_some(),
                "{report:?}"
            );
            match Client::connect_within(address, limit) {
                Err(ClientError::NotConnected(error)) => *error,
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}
