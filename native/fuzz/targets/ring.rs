//! libFuzzer's entry to `ring`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhostvsock_fuzz::ring::run(data));
