use proptest::prelude::*;

use crate::fuzz::adoption;

/// What a host of a session says that has cells of all kinds.
const RECORD: &str = include_str!("../../../protocol/fuzz/corpus/adoption/session");

#[test]
fn a_record_is_taken_as_it_was_said() {
    let info: pythond_protocol::lane::HostInfo = serde_json::from_str(RECORD).unwrap();
    assert_eq!(info.session.unwrap().unfinished.len(), 2);
    adoption(RECORD.as_bytes());
}

proptest! {
    #[test]
    fn no_damage_breaks_whoever_takes_over(
        at in any::<prop::sample::Index>(),
        with in prop::collection::vec(any::<u8>(), 0..20),
        over in 0_usize..20,
    ) {
        let mut bytes = RECORD.as_bytes().to_vec();
        let at = at.index(bytes.len());
        let end = (at + over).min(bytes.len());
        bytes.splice(at..end, with);
        adoption(&bytes);
    }
}
