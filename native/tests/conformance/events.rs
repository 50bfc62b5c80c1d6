//! News for the control plane: one VM's neither crowd out another's nor grow without end, and questions are few.

use crate::rig::{Rig, open_from_host};
use vhostvsock_native::device::Admission;
use vhostvsock_native::events::{Event, Kind};
use vsock_driver::front_end::message::request;
use vsock_driver::front_end::words;
use vsock_driver::guest::{Guest, Setup};
use vsock_driver::header::op;

/// The most questions that wait for an answer.
const QUESTIONS: u32 = 64;

/// All events but log lines that wait, about device 1 and about the other.
fn news(rig: &Rig) -> (Vec<Event>, Vec<Event>) {
    std::iter::from_fn(|| rig.events.pop()).filter(|event| event.kind != Kind::Log).partition(|event| event.device == 1)
}

/// What the events are about.
fn kinds(events: &[Event]) -> Vec<Kind> {
    events.iter().map(|event| event.kind).collect()
}

/// Another VM to which a front-end comes, and goes.
fn another_that_came_and_went(rig: &Rig) -> Rig {
    let other = rig.another(2);
    drop(other.plug());
    // The next one can only attach when the one before is gone.
    drop(other.plug());
    other
}

/// The guest asks for one port after the other, from these ports of its own.
fn request_all(guest: &mut Guest, from: std::ops::Range<u32>) {
    from.for_each(|port| guest.say(op::REQUEST, port, 7777));
}

#[test]
fn questions_beyond_64_are_refused_and_answers_make_room_for_others() {
    let rig = Rig::new();
    let _other = another_that_came_and_went(&rig);
    let front = rig.plug_as(Admission { asks: true, ..Admission::default() });
    let mut guest = Guest::boot(front, Setup::default()).unwrap();
    request_all(&mut guest, 0..QUESTIONS);
    for round in 1..=10 {
        let ports = round * QUESTIONS..(round + 1) * QUESTIONS;
        request_all(&mut guest, ports.clone());
        for port in ports {
            assert_eq!(guest.expect(op::RST).header.dst_port, port);
        }
    }
    let stats = rig.stats();
    assert_eq!((stats.connections, stats.guest_requests, stats.refused_limit), (64, 704, 640));
    let (ours, others) = news(&rig);
    let asked: Vec<_> = ours.iter().filter(|event| event.kind == Kind::Ask).collect();
    let ports: Vec<_> = asked.iter().map(|event| (event.value >> 32, event.value & 0xffff_ffff)).collect();
    assert_eq!(ports, (0..64).map(|port| (port, 7777)).collect::<Vec<_>>());
    assert_eq!(kinds(&others)[..2], [Kind::Attached, Kind::Detached]);

    // Three are answered: so many can be asked anew.
    for event in &asked[..3] {
        rig.device.answer(event.token, None, u32::MAX);
        assert_eq!(u64::from(guest.expect(op::RST).header.dst_port), event.value >> 32);
    }
    request_all(&mut guest, 1000..1004);
    assert_eq!(guest.expect(op::RST).header.dst_port, 1003);
    let (ours, _) = news(&rig);
    assert_eq!(kinds(&ours), [Kind::Ask; 3]);
    assert_eq!((rig.stats().connections, rig.stats().refused_no_listener, rig.stats().refused_limit), (64, 3, 641));
}

#[test]
fn questions_that_the_guest_gives_up_count_until_they_are_answered() {
    let rig = Rig::new();
    let front = rig.plug_as(Admission { asks: true, ..Admission::default() });
    let mut guest = Guest::boot(front, Setup::default()).unwrap();
    // As fast as the guest can, while the control plane has other things to do.
    for port in 0..10 * QUESTIONS {
        guest.say(op::REQUEST, port, 7777);
        guest.say(op::RST, port, 7777);
    }
    guest.flush();
    assert_eq!(rig.stats().guest_requests, 640);
    let (ours, _) = news(&rig);
    let asked: Vec<_> = ours.iter().filter(|event| event.kind == Kind::Ask).collect();
    assert_eq!(asked.len(), 64, "questions wait");
    // The answers concern nobody any more, and make room for as many.
    asked.iter().for_each(|event| rig.device.answer(event.token, None, u32::MAX));
    rig.device.ping();
    rig.wait_stats("answers", |s| s.pongs == 1);
    request_all(&mut guest, 1000..1000 + QUESTIONS);
    guest.flush();
    assert_eq!(kinds(&news(&rig).0), [Kind::Ask; 64]);
    assert_eq!((rig.stats().connections, rig.stats().refused_no_listener), (64, 0));
}

#[test]
fn rings_that_start_and_stop_again_and_again_leave_only_the_last_news() {
    let rig = Rig::new();
    let _other = another_that_came_and_went(&rig);
    let mut guest = rig.boot();
    for enabled in [0, 1].repeat(2500) {
        guest.front.tell(request::SET_VRING_ENABLE, &words(&[0, enabled]), &[]).unwrap();
    }
    guest.front.sync().unwrap();
    let (ours, others) = news(&rig);
    assert_eq!(kinds(&ours), [Kind::Attached, Kind::Started]);
    assert_eq!(kinds(&others)[..2], [Kind::Attached, Kind::Detached]);
    open_from_host(&rig, &mut guest, 80);
}
