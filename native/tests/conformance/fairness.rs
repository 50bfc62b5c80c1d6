//! One connection's flood is another's delay of moments, not more.

use crate::rig::{Rig, connect_from_guest, connect_from_host};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vsock_driver::linux::Received;

/// How long a byte may take beside a flood: generous, as tests share their processors.
const SOON: Duration = Duration::from_millis(500);

#[test]
fn flood_into_the_guest_does_not_starve_another_connections_byte() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (flood, mut writer) = connect_from_host(&rig, &mut kernel, 80);
    let (quiet, mut single) = connect_from_host(&rig, &mut kernel, 81);
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let flooding = std::thread::spawn(move || {
        let block = vec![1; 65_536];
        while !stopping.load(Ordering::Relaxed) && writer.write_all(&block).is_ok() {}
    });
    for _ in 0..20 {
        single.write_all(b"x").unwrap();
        let start = Instant::now();
        let mut flooded = 0;
        loop {
            kernel.pump();
            if let Received::Data(part) = kernel.recv(flood, 65_536) {
                flooded += part.len();
            }
            if matches!(kernel.recv(quiet, 1), Received::Data(_)) {
                break;
            }
            assert!(start.elapsed() < SOON, "a byte waited behind {flooded} bytes of another connection");
        }
    }
    stop.store(true, Ordering::Relaxed);
    kernel.close(flood);
    kernel.pump_until(|_| flooding.is_finished());
    flooding.join().unwrap();
}

#[test]
fn flood_out_of_the_guest_does_not_starve_another_connections_byte() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let (flood, mut reader) = connect_from_guest(&mut kernel, &listener, 1000);
    let (quiet, mut single) = connect_from_guest(&mut kernel, &listener, 1000);
    let flooding = std::thread::spawn(move || {
        let mut block = vec![0; 65_536];
        while reader.read(&mut block).is_ok_and(|len| len > 0) {}
    });
    let block = vec![1; 200_000];
    for round in 0..20 {
        kernel.pump();
        kernel.send(flood, &block);
        let start = Instant::now();
        kernel.send_all(quiet, &[round]);
        kernel.send(flood, &block);
        let mut byte = [0];
        single.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [round]);
        assert!(start.elapsed() < SOON);
    }
    kernel.close(flood);
    flooding.join().unwrap();
}

#[test]
fn host_writers_of_one_guest_share_its_receive_buffers_evenly() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let mut writers = Vec::new();
    let stop = Arc::new(AtomicBool::new(false));
    let mut ids = Vec::new();
    for port in 80..84 {
        let (id, mut writer) = connect_from_host(&rig, &mut kernel, port);
        ids.push(id);
        let stopping = Arc::clone(&stop);
        writers.push(std::thread::spawn(move || {
            let block = vec![1; 65_536];
            while !stopping.load(Ordering::Relaxed) && writer.write_all(&block).is_ok() {}
        }));
    }
    let mut counts = [0; 4];
    let start = Instant::now();
    while counts.iter().sum::<usize>() < 20_000_000 {
        assert!(start.elapsed() < Duration::from_secs(10));
        kernel.pump();
        for (id, count) in ids.iter().zip(&mut counts) {
            if let Received::Data(part) = kernel.recv(*id, 65_536) {
                *count += part.len();
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    for id in ids {
        kernel.close(id);
    }
    kernel.pump_until(|_| writers.iter().all(|writer| writer.is_finished()));
    assert!(counts.iter().all(|&count| count > 1_000_000), "{counts:?}");
}
