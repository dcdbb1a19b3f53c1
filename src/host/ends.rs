//! What happens when a cell has ended: whoever waits is told, and what waited
//! for it begins.

use pythond_protocol::lane::{FinishedCell, HostEvent};

use crate::fire;
use crate::shared::Shared;

/// Tells everybody who waits for a cell that it has ended, by the control lane.
pub(crate) fn announce(shared: &'static Shared, mut end: FinishedCell) {
    let waiting = shared.ended(&mut end);
    let (event, body) = shared.finished_message(Box::new(end.clone()));
    shared.send(event, body.clone());
    tell_others(shared, &end, waiting, &body);
    settle(shared, &end);
}

/// Tells those who asked for a cell's end beside the one who submitted it.
pub(crate) fn tell_others(shared: &Shared, end: &FinishedCell, waiting: Vec<u64>, body: &[u8]) {
    for request in waiting {
        let copy = FinishedCell {
            request: Some(request),
            ..end.clone()
        };
        shared.send(HostEvent::Finished(Box::new(copy)), body.to_vec());
    }
}

/// Budgets take note, and `fire` cells that waited for this one start.
pub(crate) fn settle(shared: &'static Shared, end: &FinishedCell) {
    shared.retire(end);
    fire::start(shared, shared.due_beside());
}
