//! `pyctl pair [HOST:PORT]`: first contact by a short code.

mod accept;
mod offer;

use crate::args::PairArgs;
use crate::failure::Outcome;
use crate::render::Render;

/// Without an address the code is made here, with one it is typed here.
pub(super) fn pair(args: &PairArgs, render: &Render) -> Outcome {
    match &args.address {
        None => offer::offer(args.span, render),
        Some(address) => accept::accept(address, args, render),
    }
}
