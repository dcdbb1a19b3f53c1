//! The same tests with a daemon that is reached over TLS.

#[path = "cells.rs"]
mod cells;
#[path = "interrupt.rs"]
mod interrupt;
#[path = "run.rs"]
mod run;
#[path = "streaming.rs"]
mod streaming;

pub(crate) use super::{DEADLINE, Found, ID, ctrl_c, end, output, pysh};

/// As the module of this name beside this one, over TLS.
pub(crate) mod support {
    use std::ffi::OsString;

    pub(crate) use crate::support::{ACCEPTED, Daemon, Say, cell, piece, streamed};

    use crate::far::{Clients, Machine, TOKEN, VERSIONS, admitted, encrypted, listen};
    use crate::support::converse;

    /// Listens on a port of its own until the process ends.
    pub(crate) struct ScriptedDaemon {
        here: Machine,
        port: u16,
    }

    impl ScriptedDaemon {
        pub(crate) fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
            Self::speaking(move |frame, say| {
                let answer = answer(frame);
                !answer.is_empty() && say(&answer)
            })
        }

        pub(crate) fn speaking(
            answer: impl Fn(&str, Say<'_>) -> bool + Send + Sync + 'static,
        ) -> Self {
            Self::listen(answer, true)
        }

        pub(crate) fn flooding(
            answer: impl Fn(&str, Say<'_>) -> bool + Send + Sync + 'static,
        ) -> Self {
            Self::listen(answer, false)
        }

        fn listen(
            answer: impl Fn(&str, Say<'_>) -> bool + Send + Sync + 'static,
            at_once: bool,
        ) -> Self {
            let (here, far) = (Machine::new(), Machine::new());
            let config = far.tls(Clients::NotAsked, VERSIONS[0]);
            let port = listen(move |stream| {
                if let Some(socket) = admitted(encrypted(&config, stream)) {
                    converse(socket, &answer, at_once);
                }
            });
            here.pins(&far, Some(&format!("127.0.0.1:{port}")));
            Self { here, port }
        }
    }

    impl Daemon for ScriptedDaemon {
        fn way(&self) -> Vec<(&'static str, OsString)> {
            vec![
                ("PYTHOND_HOST", "127.0.0.1".into()),
                ("PYTHOND_PORT", self.port.to_string().into()),
                ("PYTHOND_TLS", "1".into()),
                ("PYTHOND_TOKEN", TOKEN.into()),
                ("HOME", self.here.home.path().into()),
            ]
        }
    }
}
