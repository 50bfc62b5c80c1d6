//! libFuzzer's entry to `conversation`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhostvsock_fuzz::conversation::run(data));
