//! libFuzzer's entry to `session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhostvsock_fuzz::session::run(data));
