//! What a host says to a daemon that takes it over.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pythond_host_parts::fuzz::adoption;

fuzz_target!(|bytes: &[u8]| adoption(bytes));
