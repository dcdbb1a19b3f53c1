//! The table of a session's cells.

use std::time::Duration;

use pythond_protocol::lane::CellSpec;
use pythond_protocol::outcome::CellKind;
use pythond_protocol::{CellId, ErrorCode};

use crate::cells::{Acceptance, Cells, Found, Moment, Offer};

const SALT: u16 = 7;

fn offer(cells: &mut Cells, lane: Option<u64>) -> Acceptance {
    let offer = Offer {
        request: 1,
        kind: CellKind::Run,
        lane,
        how: &CellSpec::default(),
        source: "1",
        age: Duration::ZERO,
        held: false,
    };
    cells.accept(&offer, None, Moment::now())
}

fn accept(cells: &mut Cells, lane: Option<u64>) -> CellId {
    match offer(cells, lane) {
        Acceptance::New(id) => id,
        other => panic!("{other:?}"),
    }
}

fn why_not_found(cells: &mut Cells, id: CellId) -> ErrorCode {
    match cells.find(id, 9) {
        Found::Unknown(error) => error.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cell_that_is_forgotten_is_told_from_one_that_never_came() {
    let mut cells = Cells::new(SALT);
    cells.use_lane(1);
    let forgotten = accept(&mut cells, None);
    cells.forget([forgotten]);
    let expected = cells.next_id();
    cells.reserve(expected);
    assert!(matches!(cells.find(expected, 9), Found::Later));
    cells.forget_requests();
    let never_sent = cells.next_id();
    for _ in 0..2 {
        assert_eq!(why_not_found(&mut cells, forgotten), ErrorCode::Lost);
        assert_eq!(why_not_found(&mut cells, expected), ErrorCode::UnknownCell);
        assert_eq!(
            why_not_found(&mut cells, never_sent),
            ErrorCode::UnknownCell
        );
        // The lanes break again before anybody asked.
        cells.forget_requests();
    }
    let of_another = CellId::from_parts(SALT + 1, 1);
    assert_eq!(
        why_not_found(&mut cells, of_another),
        ErrorCode::UnknownCell
    );
}

#[test]
fn a_cell_of_a_lane_before_the_last_welcome_is_stale() {
    let mut cells = Cells::new(SALT);
    let from = |cells: &mut Cells, lane| matches!(offer(cells, Some(lane)), Acceptance::New(_));
    assert!(!from(&mut cells, 1));
    cells.use_lane(1);
    assert!(from(&mut cells, 1));
    cells.forget_requests();
    assert!(!from(&mut cells, 1));
    cells.use_lane(2);
    assert!(!from(&mut cells, 1));
    assert!(from(&mut cells, 2));
}

#[test]
fn a_cell_that_was_sent_before_the_session_began_is_taken_only_if_it_is_known() {
    let mut cells = Cells::new(SALT);
    let mut offer = |key: &str, age_ms, resent_ms| {
        let how = CellSpec {
            key: Some(key.to_owned()),
            resent_ms,
            ..CellSpec::default()
        };
        let offer = Offer {
            request: 1,
            kind: CellKind::Run,
            lane: None,
            how: &how,
            source: "1",
            age: Duration::from_millis(age_ms),
            held: false,
        };
        cells.accept(&offer, offer.digest(), Moment::now())
    };
    let is_lost =
        |accepted| matches!(accepted, Acceptance::Refused(error) if error.code == ErrorCode::Lost);
    assert!(is_lost(offer("new", 9, Some(10))));
    assert!(matches!(offer("new", 10, Some(10)), Acceptance::New(_)));
    // It is here: whatever clocks say, it came here.
    assert!(matches!(
        offer("new", 10, Some(11)),
        Acceptance::Existing(..)
    ));
    assert!(matches!(offer("other", 0, None), Acceptance::New(_)));
}
