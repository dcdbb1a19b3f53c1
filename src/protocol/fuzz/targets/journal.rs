//! A journal that was damaged anywhere: its reader stays within it, gives whole
//! records or says that there are none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pythond_host_parts::fuzz::Damaged;

thread_local! {
    static FILES: Damaged = Damaged::default();
}

fuzz_target!(|bytes: &[u8]| FILES.with(|files| files.journal(bytes)));
