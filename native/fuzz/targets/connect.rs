//! libFuzzer's entry to `connect`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhostvsock_fuzz::connect::run(data));
