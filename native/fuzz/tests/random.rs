//! The targets under random input: what the fuzzers look for with guidance, in every run of the tests.

use proptest::collection::vec;
use proptest::prelude::*;
use vhostvsock_fuzz::{connect, conversation, header, ring, session};

/// So many inputs, or a multiple if `PROPTEST_CASES` says so.
fn inputs(count: u32) -> ProptestConfig {
    let standard = ProptestConfig::default();
    ProptestConfig { cases: standard.cases * count / 256, failure_persistence: None, ..standard }
}

proptest! {
    #![proptest_config(inputs(400))]

    #[test]
    fn headers_are_read_as_the_standard_has_them(data in vec(any::<u8>(), 44)) {
        header::run(&data);
    }

    #[test]
    fn lines_of_clients_are_judged_alike_in_one_piece_and_in_many(
        data in prop_oneof![vec(any::<u8>(), 0..80), "(CONNECT|connect|CoNNeCT)?[ \t]{0,3}[0-9+-]{0,12}[ \r]{0,2}\n.{0,9}".prop_map(String::into_bytes)],
    ) {
        connect::run(&data);
    }

    /// Whatever stands in the ring: no panic, no byte outside of memory, and each chain is judged as the standard has it.
    #[test]
    fn malicious_rings_are_followed_as_far_as_the_standard_goes(data in vec(any::<u8>(), 0..1500)) {
        ring::run(&data);
    }

    #[test]
    fn front_ends_end_no_session_but_their_own_and_leave_nothing_open(data in vec(any::<u8>(), 0..600)) {
        session::run(&data);
    }
}

proptest! {
    // Cheap, and what it looks for takes many things that come together.
    #![proptest_config(inputs(1600))]

    /// Whatever the ends of many connections do with whatever windows: bytes out are bytes in, in order, and messages whole;
    /// nothing overruns the guest or us; and once both ends of one read and write again, everything comes through.
    #[test]
    fn bytes_out_are_bytes_in_or_the_connection_was_reset(data in vec(any::<u8>(), 0..1500)) {
        conversation::run(&data);
    }
}
