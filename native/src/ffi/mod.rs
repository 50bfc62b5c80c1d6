//! Job: every function that Python calls, and nothing else.
//! Before: vhostvsock/native.py, through cffi. After: `device` and `events`.
//! Rules: each export goes through [`guard()`]; returns a status and writes results through pointers; hands out numbers,
//! never pointers. All may be called from any thread at any time. The C header is made from this file.
// UNSAFETY: exports are found by name and take the caller's pointers.
#![allow(unsafe_code)]

mod guard;
mod handle;
mod memory;

use crate::device::{Admission, BRIDGE_TIMEOUT, Client, Device, Listeners, Scope, Settings, Wish};
use crate::events::Events;
use crate::ids::{GuestCid, GuestPort, HostPort};
use crate::stats::Stats;
use crate::timers::{MICROSECOND, MILLISECOND};
use guard::{ERR_BUSY, ERR_PANIC, Failed, copy_text, guard};
use std::ffi::{CStr, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

pub use guard::VhvError;

/// One event, as read by [`vhv_next_event`].
#[repr(C)]
pub struct VhvEvent {
    /// Handle of the device that it is about.
    pub device: u64,
    /// What it is about: 0 a log line, 1 front-end attached, 2 detached, 3 rings started, 4 stopped, 5 fault, 6 the guest
    /// asks for a port ([`vhv_device_answer`]): that in the lower half of `value`, its own in the upper one; 7 network
    /// namespace `value` is unknown ([`vhv_device_netns`]), `fd` is a socket made in it; 8 as 6, for a SOCK_SEQPACKET socket.
    pub kind: u32,
    /// How important it is, in the numbers of Python's logging.
    pub level: u32,
    /// Names what is asked about, in the answer.
    pub token: u64,
    /// Ports or a cookie; see `kind`.
    pub value: u64,
    /// A descriptor that the caller owns from now on, or -1.
    pub fd: i32,
    /// For people, UTF-8 with a NUL at the end.
    pub text: [c_char; 476],
}

/// What a device is made of. Zero stands for the default where nothing else is said.
#[repr(C)]
pub struct VhvDeviceConfig {
    /// The VM's name, for the thread's.
    pub name: *const c_char,
    /// `<uds_path>_<port>` is where the guest finds host applications. Any bytes but NUL.
    pub uds_path: *const c_char,
    /// The guest's CID, 3 to 0xfffffffe; zero is not allowed.
    pub guest_cid: u64,
    /// A UNIX stream socket that listens and does not block. The device keeps a copy of its own.
    pub hybrid_listener: i32,
    /// The same for messages, a SOCK_SEQPACKET socket, or -1 for none.
    pub seqpacket_listener: i32,
    /// Receive window of each connection, in bytes.
    pub buf_alloc: u32,
    /// Connections that may exist at once.
    pub max_connections: u32,
    /// How long a client may take for its CONNECT line.
    pub handshake_timeout_ms: u32,
    /// How long the guest may take to answer a request for a connection.
    pub connect_timeout_ms: u32,
    /// How long to look for more at the most before sleeping.
    pub poll_us: u32,
    /// 1 if the front-end is to be able to go on at another back-end, should this one die, else 0.
    pub reconnect: u32,
}

/// What a device counted, in the order of the names that [`vhv_stat_name`] tells.
#[repr(C)]
pub struct VhvStats {
    /// How many values there are.
    pub count: u32,
    /// The values.
    pub values: [u64; 64],
}

/// What a pointer points to, or the failure of one that is null.
///
/// # Safety
///
/// `pointer` is null or points to a `T` that nobody else uses during the call.
unsafe fn out<'a, T>(pointer: *mut T, what: &str) -> Result<&'a mut T, Failed> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_mut() }.ok_or_else(|| Failed::argument(format!("{what} is a null pointer")))
}

/// A text that C passed.
///
/// # Safety
///
/// `pointer` is null or points to bytes that end with a NUL.
unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a CStr, Failed> {
    if pointer.is_null() {
        return Err(Failed::argument(format!("{what} is a null pointer")));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CStr::from_ptr(pointer) })
}

/// `value`, or the default where it is zero.
fn or_default<T: Default + PartialEq>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}

/// Makes an engine: the queue of events of the devices that it will have. `event_fd` gets an eventfd that is readable
/// while events wait; it belongs to the engine.
///
/// # Safety
///
/// Pointers are null or point to what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_engine_new(engine: *mut u64, event_fd: *mut i32, err: *mut VhvError) -> i32 {
    // SAFETY: the caller's promise, here and below.
    unsafe {
        guard(err, || {
            let (engine, event_fd) = (out(engine, "engine")?, out(event_fd, "event_fd")?);
            let events = Arc::new(Events::new()?);
            let number = handle::reserve();
            (*engine, *event_fd) = (number, events.fd().as_raw_fd());
            handle::put_engine(number, events);
            Ok(0)
        })
    }
}

/// Ends an engine with all its devices; waits for their threads.
///
/// # Safety
///
/// `err` is null or points to a record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_engine_free(engine: u64, err: *mut VhvError) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        guard(err, || {
            drop(handle::take_engine(engine)?);
            Ok(0)
        })
    }
}

/// Has log lines below `level` (Python's numbers) not made at all.
///
/// # Safety
///
/// `err` is null or points to a record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_engine_set_log_level(engine: u64, level: u32, err: *mut VhvError) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        guard(err, || {
            handle::engine(engine)?.set_level(level);
            Ok(0)
        })
    }
}

/// Takes the oldest event out of the queue: 1 if there was one, 0 if not.
///
/// # Safety
///
/// Pointers are null or point to what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_next_event(engine: u64, event: *mut VhvEvent, err: *mut VhvError) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        guard(err, || {
            let record = out(event, "event")?;
            let Some(event) = handle::engine(engine)?.pop() else { return Ok(0) };
            (record.device, record.kind, record.level) = (event.device, event.kind as u32, event.level as u32);
            (record.token, record.value) = (event.token, event.value);
            record.fd = event.fd.map_or(-1, IntoRawFd::into_raw_fd);
            copy_text(&event.text, &mut record.text);
            Ok(1)
        })
    }
}

/// Starts a device with a thread of its own. It serves clients of the listener from now on, and a guest once a
/// front-end is attached.
///
/// # Safety
///
/// Pointers, those in `config` too, are null or point to what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_device_new(
    engine: u64,
    config: *const VhvDeviceConfig,
    device: *mut u64,
    err: *mut VhvError,
) -> i32 {
    // SAFETY: the caller's promise, here and below.
    unsafe {
        guard(err, || {
            let device = out(device, "device")?;
            let config = config.as_ref().ok_or_else(|| Failed::argument("config is a null pointer"))?;
            let events = handle::engine(engine)?;
            let settings = settings(config)?;
            if config.hybrid_listener < 0 {
                return Err(Failed::argument("hybrid_listener is no file descriptor"));
            }
            // A number that is no descriptor makes the copy fail.
            let copy = |fd| BorrowedFd::borrow_raw(fd).try_clone_to_owned();
            let seqpacket = Some(config.seqpacket_listener).filter(|&fd| fd >= 0);
            let listeners =
                Listeners { stream: copy(config.hybrid_listener)?, seqpacket: seqpacket.map(copy).transpose()? };
            let number = handle::reserve();
            let made = Device::start(number, settings, listeners, events)?;
            handle::put_device(number, made, engine)?;
            *device = number;
            Ok(0)
        })
    }
}

/// Reads a device's configuration.
///
/// # Safety
///
/// Pointers in `config` are null or point to what their types say.
unsafe fn settings(config: &VhvDeviceConfig) -> Result<Settings, Failed> {
    let cid = GuestCid::new(config.guest_cid)
        .ok_or_else(|| Failed::argument(format!("no guest can have CID {}", config.guest_cid)))?;
    // SAFETY: the caller's promise, for both.
    let (name, path) = unsafe { (text(config.name, "name")?, text(config.uds_path, "uds_path")?) };
    let default = Settings::new(&name.to_string_lossy(), cid, path.to_bytes());
    let nanoseconds = |ms: u32| u64::from(ms) * MILLISECOND;
    Ok(Settings {
        buf_alloc: or_default(config.buf_alloc, default.buf_alloc),
        max_connections: or_default(config.max_connections as usize, default.max_connections),
        handshake_timeout: or_default(nanoseconds(config.handshake_timeout_ms), default.handshake_timeout),
        poll: u64::from(config.poll_us) * MICROSECOND,
        reconnect: config.reconnect != 0,
        connect_timeout: or_default(nanoseconds(config.connect_timeout_ms), default.connect_timeout),
        ..default
    })
}

/// On which terms a front-end is attached.
#[repr(C)]
pub struct VhvAdmission {
    /// The guest's CID, or 0 for the one of the configuration.
    pub guest_cid: u64,
    /// Whose clients may see the VM: 0 everyone's, 1 those of all global network namespaces, 2 those of `netns` alone.
    pub scope: u32,
    /// 1 if the control plane wants to be asked about ports where nobody listens at the VM's own path, else 0.
    pub asks: u32,
    /// Cookie of the VM's network namespace.
    pub netns: u64,
}

/// Takes over a descriptor that the caller gives away.
///
/// # Safety
///
/// `fd` is negative, or a descriptor that nobody else uses from now on.
unsafe fn take_fd(fd: i32) -> Result<OwnedFd, Failed> {
    if fd < 0 {
        return Err(Failed::argument("fd is no file descriptor"));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Hands a connected vhost-user socket to a device, which owns it from now on, also where the call fails.
///
/// # Safety
///
/// `fd` is a descriptor that the caller gives away; pointers are null or point to what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_device_attach(
    device: u64,
    fd: i32,
    admission: *const VhvAdmission,
    err: *mut VhvError,
) -> i32 {
    // SAFETY: the caller's promise, here and below.
    unsafe {
        guard(err, || {
            let front_end = take_fd(fd)?;
            let terms = admission.as_ref().ok_or_else(|| Failed::argument("admission is a null pointer"))?;
            let guest_cid = match terms.guest_cid {
                0 => None,
                raw => {
                    Some(GuestCid::new(raw).ok_or_else(|| Failed::argument(format!("no guest can have CID {raw}")))?)
                }
            };
            let scope = match terms.scope {
                0 => Scope::Everyone,
                1 => Scope::Global(terms.netns),
                2 => Scope::Local(terms.netns),
                other => return Err(Failed::argument(format!("there is no scope {other}"))),
            };
            let admission = Admission { guest_cid, scope, asks: terms.asks != 0 };
            let device = handle::device(device)?;
            device.attach(front_end, admission).map_err(|_| Failed::new(ERR_BUSY, "another front-end is attached"))?;
            Ok(0)
        })
    }
}

/// The connection that a client wants. Zero stands for the default where nothing else is said.
#[repr(C)]
pub struct VhvWish {
    /// The guest's port.
    pub port: u32,
    /// The port of the client's own end, or 0xffffffff for any.
    pub from: u32,
    /// The most bytes that the guest may send ahead. What the device is configured for is the upper bound.
    pub buffer: u32,
    /// How long the guest may take to answer.
    pub timeout_ms: u32,
}

/// The window that stands for `buffer` bytes, of which 0 says nothing.
fn window(buffer: u32) -> u32 {
    or_default(buffer, u32::MAX)
}

/// Connects a client that may see the VM to a port of the guest. The device owns the client's sockets from now on, also where
/// the call fails. It answers on `answer`, or, where that is -1, on the connection itself: `OK <port>` or
/// `ERR <errno> <sentence>`, a line each. See `device::clients::Client`.
///
/// # Safety
///
/// `fd` and `answer` are descriptors that the caller gives away, or `answer` is negative; pointers are null or point to what
/// their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_device_connect(
    device: u64,
    fd: i32,
    answer: i32,
    wish: *const VhvWish,
    err: *mut VhvError,
) -> i32 {
    // SAFETY: the caller's promise, here and below.
    unsafe {
        guard(err, || {
            let socket = take_fd(fd)?;
            let answer = if answer < 0 { None } else { Some(take_fd(answer)?) };
            let wish = wish.as_ref().ok_or_else(|| Failed::argument("wish is a null pointer"))?;
            let wish = Wish {
                port: GuestPort(wish.port),
                from: Some(HostPort(wish.from)).filter(|&port| port != HostPort(u32::MAX)),
                window: window(wish.buffer),
                timeout: or_default(u64::from(wish.timeout_ms) * MILLISECOND, BRIDGE_TIMEOUT),
            };
            handle::device(device)?.connect(Client { socket, answer, wish });
            Ok(0)
        })
    }
}

/// Answers an event of kind 6 under its token: with a socket that is connected to the application that listens, which the
/// device owns from now on, also where the call fails; or with -1 where nobody listens. The guest may send `buffer` bytes
/// ahead at the most (0: the default, which is the upper bound).
///
/// # Safety
///
/// `fd` is negative or a descriptor that the caller gives away; `err` is null or points to a record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_device_answer(device: u64, token: u64, fd: i32, buffer: u32, err: *mut VhvError) -> i32 {
    // SAFETY: the caller's promise, here and below.
    unsafe {
        guard(err, || {
            let socket = if fd < 0 { None } else { Some(take_fd(fd)?) };
            handle::device(device)?.answer(token, socket, window(buffer));
            Ok(0)
        })
    }
}

/// Answers an event of kind 7: whether the network namespace with this cookie is local (1) or global (0).
///
/// # Safety
///
/// `err` is null or points to a record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_device_netns(device: u64, netns: u64, local: u32, err: *mut VhvError) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        guard(err, || {
            handle::device(device)?.learn_netns(netns, local != 0);
            Ok(0)
        })
    }
}

/// Asks a device's thread for a sign of life: it adds one to the counter `pongs` when it gets round to it. Returns 1 if it was
/// asked. One that owes a pong already is not asked again, but got out of what it waits in: 0.
///
/// # Safety
///
/// `err` is null or points to a record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_device_ping(device: u64, err: *mut VhvError) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { guard(err, || Ok(i32::from(handle::device(device)?.ping()))) }
}

/// Reads a device's counters.
///
/// # Safety
///
/// Pointers are null or point to what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_device_stats(device: u64, stats: *mut VhvStats, err: *mut VhvError) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        guard(err, || {
            let record = out(stats, "stats")?;
            let values = handle::device(device)?.counters().values();
            record.count = u32::try_from(values.len()).map_err(|_| Failed::new(ERR_PANIC, "too many counters"))?;
            record.values[..values.len()].copy_from_slice(&values);
            Ok(0)
        })
    }
}

/// The name of the counter at `index`, which lives as long as the process, or null where there is none.
#[unsafe(no_mangle)]
pub extern "C" fn vhv_stat_name(index: u32) -> *const c_char {
    Stats::NAMES.get(index as usize).map_or(std::ptr::null(), |name| name.as_ptr())
}

/// Ends a device: resets its connections, waits for its thread.
///
/// # Safety
///
/// `err` is null or points to a record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_device_free(device: u64, err: *mut VhvError) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        guard(err, || {
            drop(handle::take_device(device)?);
            Ok(0)
        })
    }
}
