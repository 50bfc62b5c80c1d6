//! Job: what every exported function does around its work: no panic leaves, every failure is told in one form.
//! Before: C calls an export. After: the export's work, then a status and an error record.
//! Rules: a status is 0 or more for success, negative for a failure. The record is optional.
// UNSAFETY: the error record is the caller's memory.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// An argument cannot be: a null pointer, a number out of range, a descriptor that is none.
pub const ERR_ARGUMENT: i32 = -1;
/// The handle was freed, or never was one, or is of another kind.
pub const ERR_HANDLE: i32 = -2;
/// The system refused; `os_errno` says why.
pub const ERR_OS: i32 = -3;
/// Another front-end is attached.
pub const ERR_BUSY: i32 = -4;
/// A fault in this library, caught.
pub const ERR_PANIC: i32 = -5;

/// Bytes of the message in [`VhvError`], with the NUL at its end.
const MESSAGE: usize = 252;

/// Why a call failed.
#[repr(C)]
pub struct VhvError {
    /// The system's number, or 0.
    pub os_errno: i32,
    /// What is wrong, UTF-8 with a NUL at the end.
    pub message: [c_char; 252],
}

/// A failure within an export.
#[derive(Debug)]
pub struct Failed {
    /// The status to return.
    code: i32,
    /// The system's number, or 0.
    os_errno: i32,
    /// What is wrong.
    text: String,
}

impl Failed {
    /// A failure with a status and a text.
    pub fn new(code: i32, text: impl Into<String>) -> Self {
        Self { code, os_errno: 0, text: text.into() }
    }

    /// A bad argument.
    pub fn argument(text: impl Into<String>) -> Self {
        Self::new(ERR_ARGUMENT, text)
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self { code: ERR_OS, os_errno: error.raw_os_error().unwrap_or(0), text: error.to_string() }
    }
}

/// Copies as much of `text` as fits, whole characters and a NUL, into `out`.
pub fn copy_text(text: &str, out: &mut [c_char]) {
    let mut len = text.len().min(out.len() - 1);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    for (to, from) in out.iter_mut().zip(text.as_bytes()[..len].iter().chain([&0])) {
        *to = c_char::from_ne_bytes([*from]);
    }
}

/// Does an export's work, and turns every way that it may end into a status.
///
/// # Safety
///
/// `err` is null or points to a record that the caller owns.
pub unsafe fn guard(err: *mut VhvError, work: impl FnOnce() -> Result<i32, Failed>) -> i32 {
    // The work holds nothing across a panic that is looked at afterwards.
    let failed = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(status)) => return status,
        Ok(Err(failed)) => failed,
        Err(_) => Failed::new(ERR_PANIC, "a fault in the native library; the process lives on"),
    };
    // SAFETY: the caller's promise.
    if let Some(record) = unsafe { err.as_mut() } {
        record.os_errno = failed.os_errno;
        record.message = [0; MESSAGE];
        copy_text(&failed.text, &mut record.message);
    }
    failed.code
}
