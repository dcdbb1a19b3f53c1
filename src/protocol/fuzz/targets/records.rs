//! Files of cells that were damaged: the note of an append that did not end, and
//! the blocks of a cell's output. The first byte says which.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pythond_host_parts::fuzz::Damaged;

thread_local! {
    static FILES: Damaged = Damaged::default();
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, rest)) = bytes.split_first() else {
        return;
    };
    FILES.with(|files| match which % 4 {
        0 => files.cell_log(rest),
        _ => files.append(rest),
    });
});
