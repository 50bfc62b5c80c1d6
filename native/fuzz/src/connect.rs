//! Job: any bytes as the beginning of what a client of the hybrid socket sends.
//! Before: a fuzzer.
//! After: the parser judged as a second reading of the rule does, and as it does when the bytes come one by one.

use vhostvsock_native::host::handshake::{MAX_LINE, Parsed, parse};
use vhostvsock_native::ids::GuestPort;

/// Parses all of it, and each beginning of it.
pub fn run(data: &[u8]) {
    let data = &data[..data.len().min(4 * MAX_LINE)];
    let whole = parse(data);
    match (expected(data), whole) {
        (Some((port, len)), found) => assert_eq!(found, Parsed::Connect { port: GuestPort(port), len }),
        (None, Parsed::Connect { .. }) => panic!("accepted: {data:?}"),
        (None, _) => {}
    }
    let mut before = Parsed::Incomplete;
    for end in 0..=data.len() {
        let now = parse(&data[..end]);
        match before {
            Parsed::Incomplete => {}
            Parsed::Connect { .. } => assert_eq!(now, before, "what follows a line is payload"),
            Parsed::Bad(_) => assert!(matches!(now, Parsed::Bad(_)), "bytes that come later made it good"),
        }
        if end >= MAX_LINE {
            assert_ne!(now, Parsed::Incomplete, "a client can go on for ever");
        }
        before = now;
    }
}

/// The port and the length of the line, by a second reading of the rule: the word in any case, blanks, up to ten digits,
/// blanks, the end of the line within the limit.
fn expected(data: &[u8]) -> Option<(u32, usize)> {
    let len = data.iter().take(MAX_LINE).position(|&byte| byte == b'\n')? + 1;
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\x0c');
    let words: Vec<&[u8]> = data[..len - 1].split(blank).filter(|word| !word.is_empty()).collect();
    let [word, digits] = words[..] else { return None };
    if !word.eq_ignore_ascii_case(b"CONNECT") {
        return None;
    }
    let mut port = 0_u64;
    for digit in digits {
        port = port * 10 + u64::from(digit.checked_sub(b'0').filter(|&digit| digit < 10)?);
        if port >= u64::from(u32::MAX) {
            return None;
        }
    }
    Some((u32::try_from(port).ok()?, len))
}
