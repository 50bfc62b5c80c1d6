//! Job: numbers for what the caller holds, so that no pointer leaves.
//! Before, after: the exports of `ffi` put engines and devices in and find them again.
//! Rules: a number is given out once in the life of the process: a stale one finds nothing. Nothing is dropped under the
//! lock, for a device's end takes its time.

use super::guard::{ERR_HANDLE, Failed};
use crate::device::Device;
use crate::events::Events;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// What a number stands for.
#[derive(Clone)]
enum Object {
    /// An engine: the queue of all its devices' events.
    Engine(Arc<Events>),
    /// A device, and the engine that it belongs to.
    Device(Arc<Device>, u64),
}

/// All that was given out and not freed.
struct Table {
    /// The next number.
    next: u64,
    /// By number.
    objects: HashMap<u64, Object>,
}

/// The one table of the process.
static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(|| Mutex::new(Table { next: 1, objects: HashMap::new() }));

/// The table, locked.
fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The failure of a number that stands for nothing of the kind.
fn unknown<T>(kind: &str) -> Result<T, Failed> {
    Err(Failed::new(ERR_HANDLE, format!("there is no such {kind}: it was freed, or never was")))
}

/// Takes a number that was never given out before.
pub fn reserve() -> u64 {
    let mut table = table();
    table.next += 1;
    table.next - 1
}

/// Gives a reserved number to an engine.
pub fn put_engine(number: u64, events: Arc<Events>) {
    table().objects.insert(number, Object::Engine(events));
}

/// Gives a reserved number to a device of `engine`; fails where that was freed in the meantime.
pub fn put_device(number: u64, device: Device, engine: u64) -> Result<(), Failed> {
    let mut table = table();
    if !matches!(table.objects.get(&engine), Some(Object::Engine(_))) {
        // Not under the lock: the device's end takes its time.
        drop(table);
        return unknown("engine");
    }
    table.objects.insert(number, Object::Device(Arc::new(device), engine));
    Ok(())
}

/// The events of an engine.
pub fn engine(number: u64) -> Result<Arc<Events>, Failed> {
    match table().objects.get(&number) {
        Some(Object::Engine(events)) => Ok(Arc::clone(events)),
        _ => unknown("engine"),
    }
}

/// A device.
pub fn device(number: u64) -> Result<Arc<Device>, Failed> {
    match table().objects.get(&number) {
        Some(Object::Device(device, _)) => Ok(Arc::clone(device)),
        _ => unknown("device"),
    }
}

/// Takes a device out of the table. It ends when the last call that uses it does.
pub fn take_device(number: u64) -> Result<Arc<Device>, Failed> {
    let mut table = table();
    match table.objects.remove(&number) {
        Some(Object::Device(device, _)) => Ok(device),
        Some(other) => {
            table.objects.insert(number, other);
            drop(table);
            unknown("device")
        }
        None => unknown("device"),
    }
}

/// Takes an engine and all its devices out of the table.
pub fn take_engine(number: u64) -> Result<Vec<Arc<Device>>, Failed> {
    let mut table = table();
    if !matches!(table.objects.get(&number), Some(Object::Engine(_))) {
        drop(table);
        return unknown("engine");
    }
    table.objects.remove(&number);
    let of_engine = |object: &Object| matches!(object, Object::Device(_, engine) if *engine == number);
    let numbers: Vec<u64> =
        table.objects.iter().filter(|(_, object)| of_engine(object)).map(|(&number, _)| number).collect();
    let devices = numbers.into_iter().filter_map(|number| table.objects.remove(&number));
    Ok(devices.filter_map(|object| if let Object::Device(device, _) = object { Some(device) } else { None }).collect())
}
