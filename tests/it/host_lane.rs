//! A control lane to a host, held by a test: what a daemon would hear there.
//! While it is there the daemon has none.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pythond_protocol::lane::{
    Decoder, HELLO_TAG, Hello, HostCommand, HostEvent, HostInfo, LINK_VERSION, Lane, encode,
};

use crate::support::TestDaemon;

/// A lane of the test's own.
pub(crate) struct HostLane {
    stream: UnixStream,
    tag: u64,
    decoder: Decoder,
}

impl HostLane {
    /// Opens a control lane to the one session of a daemon.
    pub(crate) fn open(daemon: &TestDaemon, tag: u64) -> (Self, HostInfo) {
        let sockets = daemon.host_sockets();
        let [socket] = sockets.as_slice() else {
            panic!("{sockets:?}")
        };
        let path = daemon.runtime_dir().join(socket);
        let stream = pythond_private_fs::connect_at(&path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut lane = Self {
            stream,
            tag: HELLO_TAG,
            decoder: Decoder::new(tag),
        };
        let hello = Hello {
            version: LINK_VERSION,
            tag,
            lane: Lane::Control,
        };
        let hello = encode(HELLO_TAG, &hello, b"").unwrap();
        lane.stream.write_all(&hello).unwrap();
        lane.tag = tag;
        match lane.next() {
            HostEvent::Welcome(info) => (lane, *info),
            other => panic!("{other:?}"),
        }
    }

    /// The next word of the host.
    pub(crate) fn next(&mut self) -> HostEvent {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return message.header;
            }
            let count = self.stream.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "the host closed the lane");
            self.decoder.extend(&buffer[..count]);
        }
    }

    pub(crate) fn send(&mut self, command: &HostCommand) {
        let message = encode(self.tag, command, b"").unwrap();
        self.stream.write_all(&message).unwrap();
    }
}
