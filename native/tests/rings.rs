//! The device's side of a virtqueue against sound drivers, without a device around it: their buffers come through, and their
//! wishes for notifications are kept. Malicious ones are in `fuzz/src/ring.rs`.

mod sides;

use proptest::prelude::*;
use sides::{memories, queue};
use vhostvsock_native::virtio::queue::Layout;
use vsock_driver::ring::{Piece, Ring};

/// Regions: the first for the rings, the second for buffers.
const REGIONS: [(u64, usize); 2] = [(0x20_0000, 0x4_0000), (0x1_0000, 0x1_0000)];

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 400 / 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// A sound driver gets every buffer back once, with what was written, and is woken whenever it asked for it; the device
    /// is kicked whenever it asked for it.
    #[test]
    fn sound_drivers_get_their_buffers_back_and_their_notifications(
        steps in proptest::collection::vec((0_u8..5, 1_usize..6), 1..300),
        event_idx in any::<bool>(),
        indirect in any::<bool>(),
    ) {
        let (mut memory, device_memory) = memories(&REGIONS);
        let mut driver = Ring::new(&mut memory, 16);
        driver.set_features(event_idx, indirect);
        let mut device = queue(&device_memory, &driver, 0, event_idx, false);
        let (mut offered, mut returned, mut token) = (0_u32, 0_u32, 0_u32);
        let (mut driver_sleeps, mut device_sleeps) = (false, false);
        for (what, count) in steps {
            match what {
                // The driver offers buffers.
                0 => {
                    let pieces: Vec<Piece> = (0..count).map(|i| Piece { addr: 0x1_0000 + i as u64 * 100, len: 50 }).collect();
                    if driver.add(&pieces, false, token) {
                        token += 1;
                        offered += 1;
                        let kick = driver.publish();
                        prop_assert!(kick || !device_sleeps, "a device that sleeps must be kicked");
                        device_sleeps &= !kick;
                    }
                }
                // The device works through what there is, and sleeps.
                1 => {
                    device_sleeps = false;
                    device.no_kicks();
                    let mut segments = Vec::new();
                    for _ in 0..count {
                        segments.clear();
                        match device.take(&device_memory, &mut segments).unwrap() {
                            Some(chain) => {
                                prop_assert!(chain.sound);
                                device.give_back(chain.head, 0);
                            }
                            None => break,
                        }
                    }
                    let had_sleeper = driver_sleeps && !driver.has_used();
                    let interrupt = device.publish();
                    prop_assert!(!(had_sleeper && driver.has_used() && !interrupt), "a driver that sleeps must be woken");
                    if device.available().unwrap() == 0 && !device.want_kick().unwrap() {
                        device_sleeps = true;
                    }
                }
                // The driver takes some back.
                2 | 3 => {
                    driver.disarm();
                    driver_sleeps = false;
                    for _ in 0..count {
                        if driver.pop().is_some() {
                            returned += 1;
                        }
                    }
                }
                // The driver sleeps if there is nothing.
                _ => driver_sleeps = !driver.arm(),
            }
        }
        prop_assert!(returned <= offered);
        let mut segments = Vec::new();
        while let Some(chain) = device.take(&device_memory, &mut segments).unwrap() {
            device.give_back(chain.head, 0);
        }
        device.publish();
        while driver.pop().is_some() {
            returned += 1;
        }
        prop_assert_eq!(returned, offered);
        prop_assert_eq!(driver.room(), 16);
    }
}

#[test]
fn layouts_that_are_crooked_or_outside_of_memory_are_refused() {
    let (mut memory, device_memory) = memories(&REGIONS);
    let driver = Ring::new(&mut memory, 16);
    let (desc, avail, used) = (driver.desc.user(), driver.avail.user(), driver.used.user());
    let resolve = |size, desc, avail, used| Layout::resolve(&device_memory, size, desc, avail, used).is_some();
    assert!(resolve(16, desc, avail, used));
    for size in [0, 3, 17, 65_535] {
        assert!(!resolve(size, desc, avail, used), "size {size}");
    }
    assert!(!resolve(16, desc + 8, avail, used));
    assert!(!resolve(16, desc, avail + 1, used));
    assert!(!resolve(16, desc, avail, used + 2));
    for nowhere in [0, 16, u64::MAX - 15] {
        assert!(!resolve(16, nowhere, avail, used));
        assert!(!resolve(16, desc, nowhere & !1, used));
        assert!(!resolve(16, desc, avail, nowhere & !3));
    }
    // A ring that begins in a region and ends behind it.
    let end = memory.whole(0).user() + REGIONS[0].1 as u64;
    assert!(!resolve(16, end - 128, avail, used));
    assert!(resolve(8, end - 128, avail, used));
}
