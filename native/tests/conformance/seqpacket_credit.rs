//! Message sockets at their limits: credit, unread messages, slow applications, few and small buffers.

use crate::rig::{Rig, assert_same, bytes};
use proptest::prelude::*;
use vsock_driver::deadline::Deadline;
use vsock_driver::header::{Header, SEQ_EOM, SEQPACKET, op};
use vsock_driver::host::messages::{self as host, Messenger};
use vsock_driver::layout::RxLayout;
use vsock_driver::linux::{Kernel, Message, Received, Rules, SocketId};

/// A connection that a socket of the guest asked for.
fn connect(rig: &Rig, kernel: &mut Kernel) -> (SocketId, Messenger) {
    let listener = host::listen(&rig.listener_path(1000)).unwrap();
    let id = kernel.connect_as(SEQPACKET, 1000).unwrap();
    (id, host::accept(&listener))
}

/// Sends what goes without waiting for the host to read; the messages that are whole.
fn send_until_full(kernel: &mut Kernel, id: SocketId, len: usize) -> u64 {
    let mut count = 0;
    loop {
        let message = Message { bytes: bytes(len, count), record: false };
        let mut sent = 0;
        while sent < len {
            let now = kernel.send_some(id, &message, sent).unwrap();
            // Long enough for a device that is instrumented, on a machine that is busy.
            if now == sent && !kernel.guest.wait(Deadline::after(std::time::Duration::from_millis(500))) {
                assert_eq!(kernel.socket(id).credit(), 0, "nothing else holds it up");
                return count;
            }
            sent = now;
            kernel.pump();
        }
        count += 1;
    }
}

#[test]
fn small_messages_that_the_guest_does_not_read_never_become_too_many_for_it() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, socket) = connect(&rig, &mut kernel);
    let writer = std::thread::spawn(move || {
        for number in 0..2000_u32 {
            socket.send(&number.to_le_bytes()).unwrap();
        }
        socket
    });
    // Linux 7 resets a connection with the 456th. Time for the device to send all that it is going to send.
    while kernel.guest.wait(Deadline::after(std::time::Duration::from_millis(100))) {
        kernel.pump();
    }
    assert!((300..=455).contains(&kernel.socket(id).most_unread), "{}", kernel.socket(id).most_unread);
    for number in 0..2000_u32 {
        assert_eq!(kernel.recv_message(id).unwrap().bytes, number.to_le_bytes());
    }
    writer.join().unwrap();
}

#[test]
fn slow_application_holds_the_guest_up_and_gets_every_message_whole() {
    for len in [700, 70_000] {
        let rig = Rig::new();
        let mut kernel = rig.linux();
        let (id, socket) = connect(&rig, &mut kernel);
        let whole = send_until_full(&mut kernel, id, len);
        assert!(whole * len as u64 >= 256 * 1024, "{whole}");
        for seed in 0..whole {
            assert_same(&socket.recv().unwrap(), &bytes(len, seed));
        }
        // The beginning of one more is not there before its end.
        assert_eq!(socket.try_recv().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn end_of_the_guest_follows_the_messages_that_a_slow_application_has_yet_to_take() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, socket) = connect(&rig, &mut kernel);
    let whole = send_until_full(&mut kernel, id, 3000);
    kernel.close(id);
    kernel.wait_closed(id);
    for seed in 0..whole {
        assert_same(&socket.recv().unwrap(), &bytes(3000, seed));
    }
    assert_eq!(socket.recv().unwrap(), b"", "the end, and nothing of the message that was not whole");
}

#[test]
fn guest_that_used_its_credit_up_for_the_beginning_of_a_message_is_told_of_more() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, socket) = connect(&rig, &mut kernel);
    // 60 000 bytes are taken, too few to be told at once; the rest of the window goes to the beginning of the next one.
    kernel.send_message(id, &bytes(60_000, 1)).unwrap();
    assert_same(&socket.recv().unwrap(), &bytes(60_000, 1));
    kernel.send_message(id, &bytes(256 * 1024, 2)).unwrap();
    assert_same(&socket.recv().unwrap(), &bytes(256 * 1024, 2));
}

#[test]
fn message_for_which_the_guest_has_neither_credit_nor_buffers_arrives_bit_by_bit() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.rx_buffers = 4);
    let listener = host::listen(&rig.listener_path(1000)).unwrap();
    let of_guest = |guest: &vsock_driver::guest::Guest, op, fwd_cnt| Header {
        type_: SEQPACKET,
        buf_alloc: 50_000,
        fwd_cnt,
        ..guest.header(op, 5000, 1000)
    };
    guest.send(&of_guest(&guest, op::REQUEST, 0), &[]);
    let socket = host::accept(&listener);
    guest.expect(op::RESPONSE);
    let (first, second) = (bytes(30_000, 1), bytes(50_000, 2));
    socket.send(&first).unwrap();
    socket.send(&second).unwrap();
    let mut got = Vec::new();
    let mut ends = Vec::new();
    let mut taken = 0;
    while got.len() < 80_000 {
        let packet = guest.expect(op::RW);
        got.extend(packet.payload);
        assert!(got.len() - taken <= 50_000, "beyond the credit");
        if packet.header.flags == SEQ_EOM {
            ends.push(got.len());
            taken = got.len();
            let fwd_cnt = u32::try_from(taken).unwrap();
            guest.send(&of_guest(&guest, op::CREDIT_UPDATE, fwd_cnt), &[]);
        } else {
            assert_eq!(packet.header.flags, 0);
        }
    }
    assert_eq!(ends, [30_000, 80_000]);
    assert_same(&got, &[first, second].concat());
}

/// One conversation.
#[derive(Clone, Debug)]
struct Case {
    /// Lengths of the guest's messages.
    from_guest: Vec<usize>,
    /// Lengths of the host's.
    from_host: Vec<usize>,
    /// Bytes of a receive buffer.
    buffer: usize,
    /// How many there are.
    buffers: usize,
    /// Which kernel it is.
    rules: Rules,
}

/// Lengths of messages, short ones and long ones.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let length = prop_oneof![4 => 1..200_usize, 2 => 1..10_000_usize, 1 => 1..=65_536_usize];
    proptest::collection::vec(length, 0..60)
}

/// Conversations.
fn cases() -> impl Strategy<Value = Case> {
    let rules = prop_oneof![
        Just(Rules::linux_7()),
        Just(Rules::linux_6_1()),
        Just(Rules { buf_alloc: 65_536, ..Rules::linux_7() }),
    ];
    let buffer = prop_oneof![Just(3776_usize), Just(65_536 + 44), 2400..5000_usize];
    (lengths(), lengths(), buffer, 1..128_usize, rules).prop_map(|(from_guest, from_host, buffer, buffers, rules)| {
        Case { from_guest, from_host, buffer, buffers, rules }
    })
}

/// Holds it.
fn run(case: &Case) {
    let rig = Rig::new();
    let guest = rig.boot_with(|setup| {
        setup.rx = RxLayout::OnePiece(case.buffer);
        setup.rx_buffers = case.buffers;
    });
    let mut kernel = Kernel::new(guest, case.rules);
    let (id, socket) = connect(&rig, &mut kernel);
    let message = |len: usize, number: usize| bytes(len, number as u64 + 1);
    std::thread::scope(|scope| {
        let host = scope.spawn(|| {
            let (mut sent, mut got) = (0, Vec::new());
            let sends = scope.spawn(|| {
                for (number, &len) in case.from_host.iter().enumerate() {
                    socket.send(&message(len, number)).unwrap();
                }
            });
            while got.len() < case.from_guest.len() {
                got.push(socket.recv().unwrap());
            }
            sends.join().unwrap();
            sent += case.from_host.len();
            (sent, got)
        });
        let (mut number, mut sent, mut got) = (0, 0, Vec::new());
        let deadline = Deadline::patient();
        while number < case.from_guest.len() || got.len() < case.from_host.len() || !host.is_finished() {
            assert!(!deadline.is_over(), "stuck: sent {number}, got {}: {:?}", got.len(), kernel.socket(id));
            kernel.pump();
            let mut progress = false;
            if let Some(&len) = case.from_guest.get(number) {
                let whole = Message { bytes: message(len, number), record: false };
                let now = kernel.send_some(id, &whole, sent).unwrap();
                progress = now > sent;
                (number, sent) = if now == len { (number + 1, 0) } else { (number, now) };
            }
            match kernel.try_recv_message(id) {
                Ok(message) => got.push(message.bytes),
                Err(Received::Nothing) if !progress => {
                    kernel.guest.wait(Deadline::after(std::time::Duration::from_millis(5)));
                }
                Err(Received::Nothing) => {}
                Err(other) => panic!("{other:?} after {} messages: {:?}", got.len(), kernel.socket(id)),
            }
        }
        let check = |got: &[Vec<u8>], lengths: &[usize]| {
            assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
            for (number, got) in got.iter().enumerate() {
                assert_same(got, &message(got.len(), number));
            }
        };
        check(&got, &case.from_host);
        check(&host.join().unwrap().1, &case.from_guest);
    });
    assert!(kernel.socket(id).fault.is_none());
    assert!(kernel.socket(id).most_unread <= 455);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 48 / 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_arrive_once_whole_and_in_order_whatever_their_lengths_and_the_buffers(case in cases()) {
        run(&case);
    }
}
