//! The floor of what goes by TLS: rustls alone, in a thread of this process, with
//! TLS 1.3, a P-256 certificate, and one byte as the answer to whatever comes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use pythond_identity::{Pins, Store, UnixTime};
use rustls::crypto::ring;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

use crate::far::{TlsStream, pins, tls};

/// A server that this process has.
pub(crate) struct RawTls {
    address: SocketAddr,
    pins: Pins,
    /// Holds the certificate.
    _home: TempDir,
}

impl RawTls {
    /// Starts it. Its thread ends with the process: it waits for connections until
    /// then, and costs nothing.
    pub(crate) fn start() -> Result<Self> {
        let home = tempfile::tempdir()?;
        let own = Store::open(home.path())?.own_or_make(UnixTime::now())?;
        let pair = &own.pair;
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![pair.certificate.der().clone()], pair.key().clone_key())?;
        config.send_tls13_tickets = 0;
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let pins = pins(home.path(), &pair.certificate, &address.to_string())?;
        thread::spawn(move || {
            for socket in listener.incoming() {
                // A client that is gone fails at its own end, and is told of there.
                let _ = socket.and_then(|socket| serve(socket, &config));
            }
        });
        Ok(Self {
            address,
            pins,
            _home: home,
        })
    }

    /// A new connection, its handshake done.
    pub(crate) fn connect(&self) -> Result<TlsStream> {
        tls(self.address, &self.pins)
    }
}

/// Answers one client until it goes.
fn serve(socket: TcpStream, config: &Arc<ServerConfig>) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let session = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(session, socket);
    let mut part = [0; 4096];
    while stream.read(&mut part)? > 0 {
        stream.write_all(b".")?;
    }
    Ok(())
}
