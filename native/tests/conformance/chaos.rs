//! Many connections at once, opened, used and ended in every way, with a guest that is paused and reset in between: what
//! arrives is always the beginning of what was sent, and nothing is left in the end.

use crate::rig::{Rig, bytes};
use proptest::prelude::*;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vhostvsock_native::events::Kind;
use vsock_driver::deadline::Deadline;
use vsock_driver::header::{SHUTDOWN_RCV, SHUTDOWN_SEND};
use vsock_driver::linux::{Kernel, Received, Rules, SocketId, State};

/// What happens, to the connection of a number where it says so.
#[derive(Clone, Copy, Debug)]
enum Happens {
    GuestConnects,
    HostConnects,
    GuestSends(usize, usize),
    HostSends(usize, usize),
    GuestReads(usize, usize),
    HostReads(usize, usize),
    GuestShutsDown(usize, u32),
    HostShutsDown(usize, bool),
    GuestCloses(usize),
    HostCloses(usize),
    Pump,
    Pause,
}

/// Anything.
fn happenings() -> impl Strategy<Value = Vec<Happens>> {
    let which = 0_usize..16;
    let len = || prop_oneof![1_usize..200, 1_usize..70_000];
    let one = prop_oneof![
        3 => Just(Happens::GuestConnects),
        3 => Just(Happens::HostConnects),
        8 => (which.clone(), len()).prop_map(|(which, len)| Happens::GuestSends(which, len)),
        8 => (which.clone(), len()).prop_map(|(which, len)| Happens::HostSends(which, len)),
        8 => (which.clone(), len()).prop_map(|(which, len)| Happens::GuestReads(which, len)),
        8 => (which.clone(), len()).prop_map(|(which, len)| Happens::HostReads(which, len)),
        2 => (which.clone(), 1_u32..4).prop_map(|(which, flags)| Happens::GuestShutsDown(which, flags)),
        2 => (which.clone(), any::<bool>()).prop_map(|(which, read)| Happens::HostShutsDown(which, read)),
        2 => which.clone().prop_map(Happens::GuestCloses),
        2 => which.prop_map(Happens::HostCloses),
        8 => Just(Happens::Pump),
        1 => Just(Happens::Pause),
    ];
    proptest::collection::vec(one, 1..200)
}

/// A connection, as far as it is known at both ends.
struct Pair {
    guest: SocketId,
    host: Option<UnixStream>,
    /// Its number, from which its bytes are made.
    number: u64,
    guest_sent: usize,
    host_sent: usize,
    guest_got: usize,
    host_got: usize,
}

/// The stream of one direction; longer than any test gets.
fn stream(number: u64, from: usize, len: usize) -> Vec<u8> {
    bytes(from + len, number).split_off(from)
}

/// The world.
struct World {
    rig: Rig,
    kernel: Kernel,
    listener: std::os::unix::net::UnixListener,
    pairs: Vec<Pair>,
    next: u64,
}

impl World {
    fn add(&mut self, guest: SocketId, host: UnixStream) {
        host.set_nonblocking(true).unwrap();
        self.next += 1;
        let number = self.next;
        self.pairs.push(Pair {
            guest,
            host: Some(host),
            number,
            guest_sent: 0,
            host_sent: 0,
            guest_got: 0,
            host_got: 0,
        });
    }

    fn happen(&mut self, what: Happens) {
        let count = self.pairs.len();
        let kernel = &mut self.kernel;
        let at = |which: usize| if count == 0 { None } else { Some(which % count) };
        match what {
            Happens::GuestConnects if count < 16 => {
                let id = kernel.connect(1000).unwrap();
                let host = vsock_driver::host::accept(&self.listener);
                self.add(id, host);
            }
            Happens::HostConnects if count < 16 => {
                let mut host = self.rig.ask(80);
                let id = kernel.accept(80);
                vsock_driver::host::answer(&mut host).unwrap();
                self.add(id, host);
            }
            Happens::GuestConnects | Happens::HostConnects => {}
            Happens::GuestSends(which, len) => {
                let Some(pair) = at(which).map(|index| &mut self.pairs[index]) else { return };
                let data = stream(pair.number, pair.guest_sent, len);
                pair.guest_sent += kernel.send(pair.guest, &data);
            }
            Happens::HostSends(which, len) => {
                let Some(pair) = at(which).map(|index| &mut self.pairs[index]) else { return };
                let data = stream(pair.number + 1000, pair.host_sent, len);
                if let Some(Ok(sent)) = pair.host.as_mut().map(|host| host.write(&data)) {
                    pair.host_sent += sent;
                }
            }
            Happens::GuestReads(which, len) => {
                let Some(pair) = at(which).map(|index| &mut self.pairs[index]) else { return };
                if let Received::Data(data) = kernel.recv(pair.guest, len) {
                    assert_eq!(data, stream(pair.number + 1000, pair.guest_got, data.len()), "to the guest");
                    pair.guest_got += data.len();
                }
            }
            Happens::HostReads(which, len) => {
                let Some(pair) = at(which).map(|index| &mut self.pairs[index]) else { return };
                let mut data = vec![0; len];
                if let Some(Ok(got)) = pair.host.as_mut().map(|host| host.read(&mut data)) {
                    assert_eq!(data[..got], stream(pair.number, pair.host_got, got), "to the host");
                    pair.host_got += got;
                }
            }
            Happens::GuestShutsDown(which, flags) => {
                if let Some(index) = at(which) {
                    kernel.shutdown(self.pairs[index].guest, flags & (SHUTDOWN_RCV | SHUTDOWN_SEND));
                }
            }
            Happens::HostShutsDown(which, read) => {
                let how = if read { Shutdown::Read } else { Shutdown::Write };
                if let Some(host) = at(which).and_then(|index| self.pairs[index].host.as_ref()) {
                    // One that is over already says so.
                    let _ = host.shutdown(how);
                }
            }
            Happens::GuestCloses(which) => {
                if let Some(index) = at(which) {
                    let mut pair = self.pairs.swap_remove(index);
                    let whole = kernel.socket(pair.guest).may_send();
                    kernel.close(pair.guest);
                    if let Some(host) = pair.host.take().filter(|_| whole) {
                        // The guest closed of its own will: what it sent must come through, unless the host is deaf.
                        assert_prefix(kernel, host, &pair);
                    }
                }
            }
            Happens::HostCloses(which) => {
                if let Some(index) = at(which) {
                    self.pairs[index].host = None;
                }
            }
            Happens::Pump => kernel.pump(),
            Happens::Pause => {
                let bases = kernel.guest.stop().unwrap();
                kernel.guest.start(bases).unwrap();
            }
        }
    }
}

/// Reads what is left for the host: the beginning of what was sent.
fn assert_prefix(kernel: &mut Kernel, mut host: UnixStream, pair: &Pair) {
    let deadline = Deadline::patient();
    let mut got = pair.host_got;
    let mut data = vec![0; 65_536];
    loop {
        kernel.pump();
        match host.read(&mut data) {
            Ok(0) => return,
            Ok(len) => {
                assert_eq!(data[..len], stream(pair.number, got, len));
                got += len;
                assert!(got <= pair.guest_sent);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(!deadline.is_over(), "the host never saw the end: {:?}", kernel.socket(pair.guest));
                kernel.guest.wait(Deadline::after(Duration::from_micros(300)));
            }
            Err(_) => return,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 40 / 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_many_connections_no_byte_is_wrong_and_nothing_stays(
        happenings in happenings(),
        collapse in any::<bool>(),
        reset in any::<bool>(),
    ) {
        let rig = Rig::new();
        let mut kernel = Kernel::new(rig.boot(), Rules { collapse, ..Rules::linux_7() });
        kernel.listen(80);
        let listener = rig.listen(1000);
        let mut world = World { rig, kernel, listener, pairs: Vec::new(), next: 0 };
        for what in happenings {
            world.happen(what);
        }
        let World { rig, mut kernel, pairs, .. } = world;
        let ids: Vec<SocketId> = pairs.iter().map(|pair| pair.guest).collect();
        if reset {
            kernel.guest.stop().unwrap();
            kernel.guest.front.reset_device().unwrap();
            rig.wait_stats("forgotten", |s| s.connections == 0);
        } else {
            for pair in pairs {
                kernel.close(pair.guest);
                drop(pair.host);
            }
            let gone = kernel.pump_until(|_| rig.stats().connections == 0);
            let left: Vec<_> = ids.iter().map(|id| kernel.socket(*id)).filter(|socket| socket.state != State::Closed).collect();
            prop_assert!(gone, "{:?}: {:?}", rig.stats(), left);
        }
        while let Some(event) = rig.events.pop() {
            prop_assert_ne!(event.kind, Kind::Fault, "{:?}", event);
        }
        prop_assert_eq!((rig.stats().reset_protocol, rig.stats().reset_overrun, rig.stats().front_end_errors), (0, 0, 0));
    }
}
