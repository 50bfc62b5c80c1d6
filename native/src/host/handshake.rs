//! Job: the line by which a host application says which port of the guest it wants.
//! Before: `device` peeked at the first bytes of its socket.
//! After: exactly the line is taken from the socket, what follows is payload.
//! Rules: pure; bounded; a line in pieces is no error.

use crate::ids::{GuestPort, HostPort};

/// The longest line, with its end. `CONNECT 4294967295\r\n` has 20 bytes; the rest is for blanks.
pub const MAX_LINE: usize = 32;

/// What the first bytes of a client are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a line.
    Incomplete,
    /// A whole line of `len` bytes.
    Connect {
        /// The port asked for.
        port: GuestPort,
        /// Length of the line with its end.
        len: usize,
    },
    /// Nothing that could become a line.
    Bad(&'static str),
}

/// Looks at a message of `len` bytes that a client of a message socket sent, and which begins with `bytes`: the same line, and
/// nothing else.
pub fn parse_message(bytes: &[u8], len: usize) -> Parsed {
    match parse(bytes) {
        Parsed::Connect { len: line, .. } if line < len => Parsed::Bad("there is more in the message than the line"),
        Parsed::Incomplete if len > 0 => Parsed::Bad("the line has no end"),
        other => other,
    }
}

/// Looks at the first bytes that a client sent: `CONNECT <port>\n`, the word in any case, as Firecracker takes it.
pub fn parse(bytes: &[u8]) -> Parsed {
    let window = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return match window {
            _ if !window.is_ascii() => Parsed::Bad("it is not ASCII"),
            _ if window.len() == MAX_LINE => Parsed::Bad("the line is too long"),
            _ => Parsed::Incomplete,
        };
    };
    let Ok(line) = std::str::from_utf8(&window[..end]) else { return Parsed::Bad("it is not ASCII") };
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(word), Some(port), None) if word.eq_ignore_ascii_case("CONNECT") => match port.parse() {
            // `parse` would take "+22".
            Ok(number) if number != u32::MAX && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Parsed::Connect { port: GuestPort(number), len: end + 1 }
            }
            _ => Parsed::Bad("the port is not within 0 to 4294967294"),
        },
        _ => Parsed::Bad("it is not CONNECT and a port"),
    }
}

/// The answer to a client whose connection is open.
pub fn ok_line(port: HostPort) -> String {
    format!("OK {}\n", port.0)
}

/// Why a client gets no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such VM, or none that the client may see: it cannot tell which.
    NoSuchVm,
    /// The guest has no message sockets, or there is no guest.
    NoSeqpacket,
    /// No guest's driver runs.
    NotRunning,
    /// The guest refused.
    Reset,
    /// The guest went away before it answered, or its driver started anew.
    Gone,
    /// The guest did not answer.
    Timeout,
    /// Too much of something of ours is in use.
    Limit,
    /// The port of the client's own end is in use on this way already.
    PortTaken,
}

impl Refusal {
    /// The errno that Linux gives in this case (net/vmw_vsock/af_vsock.c, drivers/vhost/vsock.c), and a sentence.
    pub fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::NoSuchVm => ("ENODEV", "no VM has this CID"),
            Self::NoSeqpacket => ("ESOCKTNOSUPPORT", "the VM has no SOCK_SEQPACKET"),
            Self::NotRunning => ("EHOSTUNREACH", "the VM runs no vsock driver at the moment"),
            Self::Reset => ("ECONNRESET", "the guest refused the connection: nobody listens on this port"),
            Self::Gone => ("ECONNRESET", "the guest went away before it answered"),
            Self::Timeout => ("ETIMEDOUT", "the guest did not answer"),
            Self::Limit => ("ENOBUFS", "too many connections"),
            Self::PortTaken => ("EADDRINUSE", "another connection to this port of the guest has the same port"),
        }
    }
}

/// The answer to a client of the bridge that gets no connection.
pub fn error_line(refusal: Refusal) -> String {
    let (errno, sentence) = refusal.told();
    format!("ERR {errno} {sentence}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        let connect = |port, len| Parsed::Connect { port: GuestPort(port), len };
        assert_eq!(parse(b"CONNECT 22\n"), connect(22, 11));
        assert_eq!(parse(b"connect 22\r\nhello"), connect(22, 12));
        assert_eq!(parse(b"CONNECT 4294967294\n"), connect(4_294_967_294, 19));
        assert_eq!(parse(b"CONN"), Parsed::Incomplete);
        assert_eq!(parse_message(b"CONNECT 22\n", 11), connect(22, 11));
        for (bad, len) in [(&b"CONNECT 22\nhello"[..], 16), (b"CONNECT 22", 10), (b"CONNECT 22\n", 12)] {
            assert!(matches!(parse_message(bad, len), Parsed::Bad(_)), "{bad:?}");
        }
        assert_eq!(parse_message(b"", 0), Parsed::Incomplete);
        assert_eq!(parse(b""), Parsed::Incomplete);
        for bad in [
            &b"CONNECT 4294967295\n"[..],
            b"CONNECT -1\n",
            b"CONNECT 1 2\n",
            b"CONNECT\n",
            b"\n",
            b"GET / HTTP/1.1\r\n",
            b"CONNECT \xff\n",
            b"\xff",
            &[b'A'; MAX_LINE],
            b"CONNECT                        22\n",
        ] {
            assert!(matches!(parse(bad), Parsed::Bad(_)), "{bad:?}");
        }
    }

    proptest! {
        /// A line cut anywhere is incomplete until its last byte, and payload behind it changes nothing.
        #[test]
        fn pieces_make_the_same_line(port in 0..u32::MAX, tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let line = format!("CONNECT {port}\n").into_bytes();
            for cut in 0..line.len() {
                prop_assert_eq!(parse(&line[..cut]), Parsed::Incomplete);
            }
            let len = line.len();
            prop_assert_eq!(parse(&[line, tail].concat()), Parsed::Connect { port: GuestPort(port), len });
        }
    }
}
