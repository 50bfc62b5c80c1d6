//! Job: what a device's thread shares with others, in every order in which the threads can come.
//! Before: `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`, which a test in tests/fuzz runs.
//! After: nothing was slept through, lost or done twice in any of them.
//! Rules: as few steps as show the rule, since the number of orders grows beyond all bounds with them.

use super::{Admission, Busy, Command, Shared};
use crate::events::{Event, Events, Kind, Level};
use loom::thread;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What the device's thread does when it wakes: how many pings it found, and whether it is to end.
fn wake_up(shared: &Shared) -> (usize, bool) {
    shared.command.take();
    let pings = std::iter::from_fn(|| shared.next_command()).filter(|next| matches!(next, Command::Ping)).count();
    (pings, shared.stop.load(Ordering::Acquire))
}

/// An event that says so much.
fn event(kind: Kind, value: u64) -> Event {
    Event { device: 1, kind, level: Level::Info, token: 0, value, fd: None, text: String::new() }
}

/// A descriptor to hand over.
fn front_end() -> OwnedFd {
    std::os::unix::net::UnixStream::pair().expect("socketpair").0.into()
}

#[test]
fn thread_that_goes_to_sleep_has_obeyed_every_command_or_is_woken() {
    loom::model(|| {
        let shared = Shared::new().expect("eventfd");
        let tellers: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.tell(Command::Ping))
            })
            .collect();
        let (mut obeyed, _) = wake_up(&shared);
        tellers.into_iter().for_each(|teller| teller.join().expect("no panic"));
        if shared.command.is_raised() {
            obeyed += wake_up(&shared).0;
        }
        assert_eq!(obeyed, 2, "the thread sleeps, and a command waits");
    });
}

#[test]
fn thread_that_is_told_to_stop_does_not_sleep_through_it() {
    loom::model(|| {
        let shared = Shared::new().expect("eventfd");
        let owner = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.stop())
        };
        let (_, mut stops) = wake_up(&shared);
        owner.join().expect("no panic");
        if !stops && shared.command.is_raised() {
            stops = wake_up(&shared).1;
        }
        assert!(stops, "the thread sleeps, and its owner waits for its end");
    });
}

#[test]
fn of_two_front_ends_at_once_one_is_attached_and_the_next_when_that_is_gone() {
    loom::model(|| {
        let shared = Shared::new().expect("eventfd");
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.attach(front_end(), Admission::default()))
        };
        let results = [shared.attach(front_end(), Admission::default()), other.join().expect("no panic")];
        assert_eq!(results.iter().filter(|&&result| result == Err(Busy)).count(), 1);
        assert!(matches!(shared.next_command(), Some(Command::Attach(..))));
        assert!(shared.next_command().is_none());
        shared.busy.store(false, Ordering::Release);
        assert_eq!(shared.attach(front_end(), Admission::default()), Ok(()));
    });
}

#[test]
fn control_plane_that_goes_to_sleep_has_read_every_event_or_is_woken() {
    loom::model(|| {
        let events = Arc::new(Events::new().expect("eventfd"));
        let pushers: Vec<_> = (0..2)
            .map(|value| {
                let events = Arc::clone(&events);
                thread::spawn(move || events.push(event(Kind::Ask, value)))
            })
            .collect();
        let mut read: Vec<u64> = std::iter::from_fn(|| events.pop()).map(|event| event.value).collect();
        pushers.into_iter().for_each(|pusher| pusher.join().expect("no panic"));
        if events.is_raised() {
            read.extend(std::iter::from_fn(|| events.pop()).map(|event| event.value));
        }
        read.sort_unstable();
        assert_eq!(read, [0, 1], "the control plane sleeps, and an event waits");
        assert!(!events.is_raised(), "it would be woken for nothing, again and again");
    });
}

#[test]
fn rings_that_stop_while_their_start_is_being_read_are_told_of_both_or_of_the_last() {
    loom::model(|| {
        let events = Arc::new(Events::new().expect("eventfd"));
        let device = {
            let events = Arc::clone(&events);
            thread::spawn(move || {
                events.push(event(Kind::Started, 0));
                events.push(event(Kind::Stopped, 0));
            })
        };
        let mut read: Vec<Kind> = events.pop().map(|event| event.kind).into_iter().collect();
        device.join().expect("no panic");
        read.extend(std::iter::from_fn(|| events.pop()).map(|event| event.kind));
        assert_eq!(read.last(), Some(&Kind::Stopped), "{read:?}");
    });
}

#[test]
fn counters_never_go_back_for_those_who_read_them() {
    loom::model(|| {
        let shared = Shared::new().expect("eventfd");
        let device = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || (0..2).for_each(|_| shared.stats.pongs.add(1)))
        };
        let seen = [shared.stats.pongs.get(), shared.stats.pongs.get()];
        device.join().expect("no panic");
        assert!(seen[0] <= seen[1] && seen[1] <= 2, "{seen:?}");
        assert_eq!(shared.stats.pongs.get(), 2);
    });
}
