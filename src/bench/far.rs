//! The daemon of another machine, as far as one machine can have it: it listens
//! on loopback, and is reached by TLS with its token.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context, Result};
use pythond_identity::{Certificate, PeerAddress, Pins, Store, Token, UnixTime};
use pythond_tls::ClientTls;
use rustls::{ClientConnection, StreamOwned};

use crate::bench::Bench;
use crate::client::{Connection, PATIENCE, frame};
use crate::setup::Daemon;

/// What a TLS client reads and writes.
pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// A daemon that is reached by TLS.
pub(crate) struct Far {
    /// It itself, for its unix socket and its memory.
    pub(crate) daemon: Daemon,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    certificate: Certificate,
    token: Token,
    pins: Pins,
}

impl Far {
    /// Starts it.
    pub(crate) fn start(bench: &Bench) -> Result<Self> {
        let options = &["--listen=127.0.0.1:0", "--tls"];
        let daemon = Daemon::start_with(&bench.daemon.programs, options)?;
        let info = daemon.connect()?.ask("info --json")?;
        let address = info["listen"][0]["address"].as_str();
        let address = address.with_context(|| format!("it listens nowhere: {info}"))?;
        let store = Store::open(daemon.directory.path())?;
        let own = store.own(UnixTime::now())?.context("no certificate")?;
        let certificate = own.pair.certificate.clone();
        let token = store.token()?.context("no token")?;
        let client = daemon.directory.path().join("client");
        std::fs::create_dir(&client)?;
        Ok(Self {
            address: address.parse()?,
            pins: pins(&client, &certificate, address)?,
            certificate,
            token,
            daemon,
        })
    }

    /// A new connection by TLS, that has shown the token.
    pub(crate) fn connect(&self) -> Result<Connection<TlsStream>> {
        let stream = tls(self.address, &self.pins)?;
        let token = self.token.reveal();
        Connection::upgrade(stream, &format!("Authorization: Bearer {token}\r\n"))
    }

    /// Gives the daemon here a name for it, at an address that leads to it.
    pub(crate) fn known_as(&self, name: &str, bench: &Bench, address: SocketAddr) -> Result<()> {
        let address = address.to_string();
        pins(bench.daemon.directory.path(), &self.certificate, &address)?;
        let options = serde_json::json!({
            "endpoints": [address], "tls": true, "session": "work", "token": self.token.reveal(),
        });
        let mut connection = bench.daemon.connect()?;
        let answer = connection.request(&frame(&format!("connect {name} --json\n{options}")))?;
        let answer: serde_json::Value = serde_json::from_str(answer)?;
        anyhow::ensure!(answer["ok"] == true, "`connect` was answered with {answer}");
        Ok(())
    }
}

/// What a home knows, when it has learned of this certificate too.
pub(crate) fn pins(home: &Path, certificate: &Certificate, address: &str) -> Result<Pins> {
    let store = Store::open(home)?;
    let address: PeerAddress = address.parse()?;
    store.pin(certificate, Some(&address))?;
    Ok(store.pins()?)
}

/// A new TLS connection, its handshake done.
pub(crate) fn tls(address: SocketAddr, pins: &Pins) -> Result<TlsStream> {
    let peer: PeerAddress = address.to_string().parse()?;
    let tls = ClientTls::new(peer, pins.clone(), None, UnixTime::now())?;
    let mut session = tls.connection()?;
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(session, socket))
}
