//! Sockets that other machines can reach.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pythond_protocol::verbs::info::Endpoint;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use super::gate::Gate;
use super::{Entrance, Stream};
use crate::handlers::Context;
use crate::network::Network;
use crate::network::listen::{Listening, is_loopback, prepare};
use crate::network::penalties::Source;
use crate::peer::Peer;

/// A socket that other machines can reach.
pub(crate) struct NetworkListener {
    socket: TcpListener,
    address: SocketAddr,
    is_encrypted: bool,
    network: Arc<Network>,
    entrance: Arc<Entrance>,
}

impl NetworkListener {
    /// Takes a socket that listens. Whatever another machine can reach is
    /// encrypted; what only this one can is if `tls` says so.
    ///
    /// # Errors
    /// If the runtime cannot take it.
    pub(crate) fn new(
        listening: Listening,
        tls: bool,
        network: Arc<Network>,
        entrance: Arc<Entrance>,
    ) -> std::io::Result<Self> {
        let address = listening.address;
        listening.socket.set_nonblocking(true)?;
        Ok(Self {
            socket: TcpListener::from_std(listening.socket)?,
            address,
            is_encrypted: tls || !is_loopback(address.ip()),
            network,
            entrance,
        })
    }

    /// Where it is: `wss://10.0.0.5:7399`.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.is_encrypted { "wss" } else { "ws" };
        format!("{scheme}://{}", self.address)
    }

    /// The same for programs.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.address.to_string(),
            tls: self.is_encrypted,
        }
    }

    /// The socket itself, which goes on listening.
    ///
    /// # Errors
    /// If the runtime cannot let go of it.
    pub(crate) fn into_socket(self) -> std::io::Result<OwnedFd> {
        self.socket.into_std().map(OwnedFd::from)
    }

    /// Accepts until the daemon stops. No failure ends it.
    pub(crate) async fn run(&self, context: &Arc<Context>, tracker: &TaskTracker) {
        let accept = async || self.socket.accept().await;
        let admit = |(stream, peer)| self.admit(stream, peer, context, tracker);
        tokio::select! {
            biased;
            () = context.stop.cancelled() => {}
            _ = self.entrance.accept_all(accept, admit) => {}
        }
    }

    fn admit(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        context: &Arc<Context>,
        tracker: &TaskTracker,
    ) {
        // One word for an IPv4 address, also where it comes by a socket of IPv6.
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let peer = Peer::Network {
            address,
            is_encrypted: self.is_encrypted,
        };
        let mut access = self.entrance.access_log(peer);
        if prepare(&stream).is_err() {
            // It has gone already.
            return;
        }
        let stream = Stream::Tcp(stream);
        let gate = Gate {
            network: Arc::clone(&self.network),
            peer: address,
            is_encrypted: self.is_encrypted,
            is_loopback: is_loopback(self.address.ip()),
        };
        let source = Some(Source::of(address.ip()));
        let Some(place) = self.entrance.place(&mut access, source) else {
            self.entrance.turn_away(stream, Some(gate), tracker);
            return;
        };
        let connection = self
            .entrance
            .connection(context, access, peer.author(), Some(gate));
        tracker.spawn(async move {
            connection.serve(stream, &place).await;
            // Its socket is closed: now there is room.
            drop(place);
        });
    }
}
