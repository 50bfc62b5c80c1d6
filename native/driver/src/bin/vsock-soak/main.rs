//! Plays many guests, or the host applications of many VMs, for `scripts/soak`: mixed traffic, every byte checked.
//!
//! ```text
//! vsock-soak guests [OPTION...] VM...   each VM is NAME:CID; its sockets are NAME.vh and NAME.v
//! vsock-soak hosts  [OPTION...] VM...
//!   --seed N         what is said, and when
//!   --standing N     connections per VM that our clients keep open throughout (0)
//!   --active N       other conversations of our clients per VM at any time (0)
//!   --pause MS       the longest pause between two of them (0)
//!   --fragile        the daemon, the other end or we may be killed: a connection that breaks is no fault, a wrong byte is
//!   --beside         hosts only: beside others, at the ports of those who may be killed
//!   --killed-hosts   guests only: there are such hosts; connect to them, too
//!   --bridge PATH    hosts only: connect by CID at this bridge
//! ```
//!
//! One line of JSON a second goes to stdout. On stdin, the line `begin` lets clients begin, the line `finish` ends all
//! conversations in an orderly way, and the end of stdin ends all the rest. Exit code 1: something went wrong, said on stderr.

mod conversation;
mod guests;
mod hosts;
mod party;
mod pattern;
mod plan;
mod tally;

use party::Party;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use tally::Tally;

/// The guest's port for host applications that live as long as the guest.
const GUEST_SOLID: u32 = 1000;
/// The guest's port for those that may be killed.
const GUEST_FRAGILE: u32 = 1001;
/// The host's port of applications that live as long as the guest.
const HOST_SOLID: u32 = 5000;
/// The host's port of those that may be killed.
const HOST_FRAGILE: u32 = 5001;
/// The longest sleep of any thread.
const WAIT: Duration = Duration::from_millis(20);

/// How to call it.
const USAGE: &str = "usage: vsock-soak guests|hosts [--seed N] [--standing N] [--active N] [--pause MS]
                  [--fragile] [--beside] [--killed-hosts] [--bridge PATH] NAME:CID...";

/// What the command line says, for all VMs.
#[derive(Debug, Default)]
struct Options {
    /// What is said, and when.
    seed: u64,
    /// Connections per VM that stay open.
    standing: u32,
    /// Other conversations per VM.
    active: u32,
    /// The longest pause of a client between two of them, in milliseconds.
    pause: u32,
    /// Somebody may be killed.
    fragile: bool,
    /// At the ports of those who may be killed.
    beside: bool,
    /// There are hosts that may be killed.
    killed_hosts: bool,
}

/// One VM.
#[derive(Clone, Debug)]
struct Vm {
    /// Its name.
    name: String,
    /// Its CID, for the bridge.
    cid: u32,
    /// Its vhost-user socket.
    socket: PathBuf,
    /// Its hybrid socket.
    uds: PathBuf,
    /// The bridge, where applications connect by CID.
    bridge: Option<PathBuf>,
}

fn main() -> ExitCode {
    let (guests, options, vms) = match parse(std::env::args().skip(1).collect()) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("vsock-soak: error: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let (options, tally) = (Arc::new(options), Arc::new(Tally::default()));
    let mut threads = Vec::new();
    for (number, vm) in (1_u64..).zip(vms) {
        let seed = options.seed.wrapping_add(number << 32).wrapping_add(u64::from(guests));
        let party = Party::new(&vm.name, seed, &options, &tally);
        threads.push(std::thread::spawn(move || {
            if guests { guests::play(&vm.socket, party) } else { hosts::play(&vm, party) }
        }));
    }
    obey(&tally);
    report(&tally, &threads);
    for thread in threads {
        if thread.join().is_err() {
            tally.fault("a thread panicked; its message is above".into());
        }
    }
    say(&tally.line());
    if tally.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Reads the command line: whether guests are played, how, and which VMs.
fn parse(words: Vec<String>) -> Result<(bool, Options, Vec<Vm>), String> {
    let mut words = words.into_iter();
    let guests = match words.next().as_deref() {
        Some("guests") => true,
        Some("hosts") => false,
        _ => return Err("guests or hosts?".into()),
    };
    let (mut options, mut bridge, mut vms) = (Options::default(), None, Vec::new());
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse().map_err(|error| format!("{word}: {error}"));
        match word.as_str() {
            "--seed" => options.seed = u64::from(number(value()?)?),
            "--standing" => options.standing = number(value()?)?,
            "--active" => options.active = number(value()?)?,
            "--pause" => options.pause = number(value()?)?,
            "--fragile" => options.fragile = true,
            "--beside" => options.beside = true,
            "--killed-hosts" => options.killed_hosts = true,
            "--bridge" => bridge = Some(PathBuf::from(value()?)),
            _ if word.starts_with('-') => return Err(format!("unknown option {word}")),
            _ => {
                let (name, cid) = word.split_once(':').ok_or_else(|| format!("{word} is not NAME:CID"))?;
                let cid = number(cid.into())?;
                vms.push(Vm {
                    name: name.into(),
                    cid,
                    socket: format!("{name}.vh").into(),
                    uds: format!("{name}.v").into(),
                    bridge: None,
                });
            }
        }
    }
    vms.iter_mut().for_each(|vm| vm.bridge.clone_from(&bridge));
    if vms.is_empty() { Err("no VM is named".into()) } else { Ok((guests, options, vms)) }
}

/// Follows the lines of stdin, in a thread of its own.
fn obey(tally: &Arc<Tally>) {
    let tally = Arc::clone(tally);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match line.as_str() {
                "begin" => tally.begun.store(true, Ordering::Relaxed),
                "finish" => tally.finishing.store(true, Ordering::Relaxed),
                _ => tally.fault(format!("{line} is no command")),
            }
        }
        tally.over.store(true, Ordering::Relaxed);
    });
}

/// Tells the numbers until everything is over.
fn report(tally: &Tally, threads: &[JoinHandle<()>]) {
    while !tally.is_over() && !threads.iter().any(JoinHandle::is_finished) {
        say(&tally.line());
        std::thread::sleep(Duration::from_secs(1));
    }
    // Without one of them, the rest is of no use.
    tally.over.store(true, Ordering::Relaxed);
}

/// One line for whoever started this.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever is gone needs no lines.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
