//! What a `fork` cell does next to its fork, in the hooks of CPython that are the
//! last before it and the first after it (`forking.rs`). A fork that a cell makes
//! itself finds nothing to do here.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;

use pyo3::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::channel::Kind;
use crate::parked::out_of_the_way;
use crate::{helpers, sys};

thread_local! {
    /// How far this thread is with the fork for a cell.
    static STEP: Cell<Step> = const { Cell::new(Step::None) };
    static CHILD_END: RefCell<Option<ChildEnd>> = const { RefCell::new(None) };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is none.
    None,
    /// CPython is told of it next.
    Announced,
    /// Nobody takes up another import until it is done; one may be under way.
    Holds { imports: bool },
    /// It could not be found out who imports.
    Blind,
}

/// What a child has that says as soon as it can that it begins.
struct ChildEnd {
    socket: OwnedFd,
    right: OwnedFd,
}

/// The right to begin, which either the child takes or the session takes back.
pub(super) fn right() -> std::io::Result<OwnedFd> {
    Ok(eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Takes it. False if the other side has.
pub(super) fn takes(right: &OwnedFd) -> bool {
    loop {
        match rustix::io::read(right, &mut [0_u8; 8]) {
            Err(Errno::INTR) => {}
            taken => return taken.is_ok(),
        }
    }
}

/// The next fork of this thread is one for a cell.
pub(super) fn announce() {
    STEP.set(Step::Announced);
}

/// Some thread imports a module, as was seen last before the fork.
pub(super) fn someone_imports() -> bool {
    STEP.get() != (Step::Holds { imports: false })
}

/// The child, as soon as it is Python again, says so here.
pub(super) fn remember_child_end(socket: &OwnedFd, right: &OwnedFd) -> std::io::Result<()> {
    CHILD_END.set(Some(ChildEnd {
        socket: out_of_the_way(socket.try_clone()?)?,
        right: out_of_the_way(right.try_clone()?)?,
    }));
    Ok(())
}

/// Nothing of Python runs from here to the fork.
pub(crate) fn is_about_to(py: Python<'_>) {
    if STEP.get() != Step::Announced {
        return;
    }
    let free = helpers::get(py).fork.bind(py).call_method0("hold_imports");
    STEP.set(match free.and_then(|free| free.extract::<bool>()) {
        Ok(free) => Step::Holds { imports: !free },
        Err(_) => Step::Blind,
    });
}

/// In the session, before any hook of a user's.
pub(crate) fn is_done(py: Python<'_>) {
    CHILD_END.take();
    let_imports_go(py);
}

/// In the child, before any hook of a user's.
pub(crate) fn is_child(py: Python<'_>) {
    if let Some(ChildEnd { socket, right }) = CHILD_END.take() {
        // Before anything of Python runs: that may end objects of the user's.
        if !takes(&right) {
            sys::exit_now(0)
        }
        // A session that is gone hears nothing.
        let frame = [Kind::Begun as u8, 0, 0, 0, 0];
        let _ = rustix::net::send(&socket, &frame, SendFlags::NOSIGNAL);
    }
    let_imports_go(py);
}

fn let_imports_go(py: Python<'_>) {
    if let Step::Holds { .. } = STEP.replace(Step::None) {
        // Held by this thread, it can be let go of.
        let _ = helpers::get(py)
            .fork
            .bind(py)
            .call_method0("release_imports");
    }
}
