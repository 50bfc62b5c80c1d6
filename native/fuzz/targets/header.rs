//! libFuzzer's entry to `header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhostvsock_fuzz::header::run(data));
